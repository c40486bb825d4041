//! TLS on both sides of the gateway: backends that are believed by policy, clients by their certificates, and all of it
//! changing while requests run.

use tidegate_lab::{
    Agent, Authority, Failure, Lab, Load, LoadPlan, Request, SecureBackend, Session, Target, certificate::Leaf,
    objects, wait_until,
};

use crate::world::{PUBLIC, PUBLIC6, SHOP, SOON, World, at, get, public, wait_status};

/// Name that the certificates of backends are for.
const NAME: &str = "backend.internal";

/// The public Gateway with a field `spec.tls`.
fn gateway(tls: &str) -> String {
    let https = objects::https_listener("https", 443, "*.example.com", "example-com");
    let listeners = [objects::http_listener("http", 80), https];
    let listeners: Vec<_> = listeners.iter().map(String::as_str).collect();
    format!("{}  tls: {tls}\n", objects::gateway("gw", "public", "public", &[PUBLIC, PUBLIC6], &listeners))
}

fn policy(service: &str, validation: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: {service}, namespace: shop}}\n\
         spec:\n  targetRefs: [{{group: \"\", kind: Service, name: {service}}}]\n  validation: {validation}\n"
    )
}

fn validation(hostname: &str) -> String {
    format!("{{hostname: {hostname}, caCertificateRefs: [{{group: \"\", kind: ConfigMap, name: backend-ca}}]}}")
}

/// A service of its own at one address, reached by its name as host name, with a policy.
fn secure_service(lab: &Lab, name: &str, address: &str) {
    let host = format!("{name}.example.com");
    let text = objects::join([
        objects::service_at("shop", name, &[address]),
        objects::route("shop", name, "gw/public", &[&host], &[&objects::to_service(name)]),
        policy(name, &validation(NAME)),
    ]);
    lab.write(&format!("{name}.yaml"), &text).unwrap();
}

fn start(lab: &Lab, name: &str, address: &str, served: &Leaf, clients: &[&Authority]) -> SecureBackend {
    let addr = format!("{address}:8080").parse().unwrap();
    SecureBackend::start(&lab.backends, name, addr, served.server_config(clients)).unwrap()
}

fn status(lab: &Lab, host: &str) -> u16 {
    get(&lab.internet, &public(), host, "/").unwrap().status
}

/// The shop over HTTPS as a client with this certificate.
fn as_client(world: &World, shown: Option<&Leaf>) -> Target {
    let config = world.authority.client_config_with(&[b"http/1.1"], shown);
    Target { tls: Some((SHOP.to_owned(), config)), ..Target::https(at(PUBLIC, 443), SHOP, &world.authority) }
}

#[test]
fn a_backend_is_believed_by_its_policy_and_nothing_reaches_it_otherwise() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let (authority, clients) = (Authority::create_as("backends").unwrap(), Authority::create_as("clients").unwrap());
    lab.write("backend-ca.yaml", &authority.to_config_map("shop", "backend-ca", &[])).unwrap();
    lab.write("client.yaml", &clients.issue(&["gateway"]).unwrap().to_secret("gw", "client")).unwrap();
    secure_service(&lab, "vault", "10.30.0.41");
    let backend = start(&lab, "vault", "10.30.0.41", &authority.issue(&[NAME]).unwrap(), &[&clients]);
    let agent = Agent::start(&lab).unwrap();
    let host = "vault.example.com";
    // The backend asks for a certificate that the Gateway does not have.
    assert_eq!(status(&lab, host), 502);
    wait_until("a refused handshake", SOON, || (backend.failed_handshakes() > 0).then_some(())).unwrap();
    lab.write("gateways.yaml", &gateway("{backend: {clientCertificateRef: {name: client}}}")).unwrap();
    let reply = wait_status(&lab.internet, &public(), host, "/", 200);
    assert_eq!(reply.backend(), Some("vault"));

    let served = backend.requests();
    for (file, from, to, expected, reason) in [
        ("vault.yaml", NAME, "other.internal", 502, None),
        ("vault.yaml", "name: backend-ca", "name: gone", 500, Some("InvalidCACertificateRef")),
        ("vault.yaml", "kind: ConfigMap, name: backend-ca", "kind: Service, name: shop", 500, Some("InvalidKind")),
        ("backend-ca.yaml", "BEGIN CERTIFICATE", "BEGIN NOTHING", 500, Some("InvalidCACertificateRef")),
        ("gateways.yaml", "{name: client}", "{name: gone}", 500, Some("InvalidClientCertificateRef")),
    ] {
        lab.edit(file, from, to).unwrap();
        wait_status(&lab.internet, &public(), host, "/", expected);
        if let Some(reason) = reason {
            let said = agent.cli(&["status", "-o", "json"]).unwrap().out;
            assert!(said.contains(reason), "{reason}: {said}");
        }
        assert_eq!(status(&lab, SHOP), 200, "a service without TLS is none of its business");
        lab.edit(file, to, from).unwrap();
        wait_status(&lab.internet, &public(), host, "/", 200);
    }
    let waits = backend.requests() - served;
    assert!(waits >= 5, "only the requests that were answered reached the backend: {waits}");
    assert!(agent.metric("tidegate_local_responses_total", &[("reason", "invalid_backend_tls")]).unwrap() >= 3.0);
    assert!(agent.metric("tidegate_local_responses_total", &[("reason", "no_client_certificate")]).unwrap() >= 1.0);
}

#[test]
fn authorities_and_certificates_towards_backends_rotate_without_a_failed_request() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let authority = |name| Authority::create_as(name).unwrap();
    let (old, new) = (authority("old backends"), authority("new backends"));
    let (old_clients, new_clients) = (authority("old clients"), authority("new clients"));
    lab.write("backend-ca.yaml", &old.to_config_map("shop", "backend-ca", &[])).unwrap();
    lab.write("client.yaml", &old_clients.issue(&["gateway"]).unwrap().to_secret("gw", "client")).unwrap();
    lab.write("gateways.yaml", &gateway("{backend: {clientCertificateRef: {name: client}}}")).unwrap();
    let (served, next) = (old.issue(&[NAME]).unwrap(), new.issue(&[NAME]).unwrap());
    let both = [&old_clients, &new_clients];
    secure_service(&lab, "vault", "10.30.0.41");
    let vault = start(&lab, "vault", "10.30.0.41", &served, &both);
    // Two more tell when a step has reached the worker: one has the new authority's certificate, one wants the new client's.
    secure_service(&lab, "new-server", "10.30.0.42");
    let _new_server = start(&lab, "new-server", "10.30.0.42", &next, &both);
    secure_service(&lab, "new-client", "10.30.0.43");
    let new_client = start(&lab, "new-client", "10.30.0.43", &served, &[&new_clients]);
    let agent = Agent::start(&lab).unwrap();
    let worker = agent.worker_pid("public");
    let host = "vault.example.com";
    // Each step makes other TLS settings, and with them new connections to the backend.
    let plan = LoadPlan::new(public(), Request::get(host, "/")).at_rate(80);
    let mut load = Load::start(&lab.internet, &plan);
    wait_until("load", SOON, || (load.total().ok() >= 20).then_some(())).unwrap();
    assert_eq!(status(&lab, "new-server.example.com"), 502);
    assert_eq!(status(&lab, "new-client.example.com"), 502);

    lab.write("backend-ca.yaml", &old.to_config_map("shop", "backend-ca", &[&new])).unwrap();
    wait_status(&lab.internet, &public(), "new-server.example.com", "/", 200);
    lab.write("client.yaml", &new_clients.issue(&["gateway"]).unwrap().to_secret("gw", "client")).unwrap();
    wait_status(&lab.internet, &public(), "new-client.example.com", "/", 200);
    vault.replace(next.server_config(&[&new_clients]));
    new_client.replace(next.server_config(&[&new_clients]));
    let seen = load.total().ok();
    wait_until("more load", SOON, || (load.total().ok() >= seen + 20).then_some(())).unwrap();
    lab.write("backend-ca.yaml", &new.to_config_map("shop", "backend-ca", &[])).unwrap();
    // The old authority is out when a server that it vouches for is not believed any more.
    let _stale = start(&lab, "stale", "10.30.0.44", &served, &both);
    secure_service(&lab, "stale", "10.30.0.44");
    wait_status(&lab.internet, &public(), "stale.example.com", "/", 502);
    let seen = load.total().ok();
    wait_until("more load", SOON, || (load.total().ok() >= seen + 20).then_some(())).unwrap();
    let report = load.stop().unwrap();
    assert_eq!(report.errors(), 0, "{report}");
    assert_eq!(vault.failed_handshakes(), 0);
    assert_eq!(agent.worker_pid("public"), worker);
}

#[test]
fn clients_are_let_in_by_their_certificates_and_their_authorities_rotate() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    let (old, new) = (Authority::create_as("old clients").unwrap(), Authority::create_as("new clients").unwrap());
    let (of_old, of_new) = (old.issue(&["a"]).unwrap(), new.issue(&["b"]).unwrap());
    let demand = |mode: &str| {
        gateway(&format!(
            "{{frontend: {{default: {{validation: {{{mode}caCertificateRefs: [{{group: \"\", kind: ConfigMap, name: clients}}]}}}}}}}}"
        ))
    };
    lab.write("gateways.yaml", &demand("")).unwrap();
    lab.write("clients.yaml", &old.to_config_map("gw", "clients", &[])).unwrap();
    let agent = Agent::start(&lab).unwrap();
    let fetch =
        |shown: Option<&Leaf>| get(&lab.internet, &as_client(&world, shown), SHOP, "/").map(|reply| reply.status);
    let is_refused = |outcome: Result<u16, Failure>| {
        matches!(outcome, Err(Failure::Tls(_) | Failure::Reset | Failure::Closed | Failure::Protocol(_)))
    };
    assert_eq!(fetch(Some(&of_old)).unwrap(), 200);
    assert!(is_refused(fetch(Some(&of_new))));
    assert!(is_refused(fetch(None)));
    assert_eq!(status(&lab, SHOP), 200, "the listener without TLS asks for nothing");
    let failures = |reason| agent.metric("tidegate_tls_handshake_failures_total", &[("reason", reason)]).unwrap();
    assert!(failures("no_client_certificate") >= 1.0 && failures("invalid_client_certificate") >= 1.0);

    let plan =
        LoadPlan::new(as_client(&world, Some(&of_new)), Request::get(SHOP, "/")).with_new_connections().at_rate(40);
    let target = as_client(&world, Some(&of_old));
    let mut kept = lab.internet.run(async move { Session::connect(&target).await }).unwrap();
    lab.write("clients.yaml", &old.to_config_map("gw", "clients", &[&new])).unwrap();
    wait_until("the new authority", SOON, || fetch(Some(&of_new)).ok().filter(|status| *status == 200)).unwrap();
    let load = Load::start(&lab.internet, &plan);
    assert_eq!(fetch(Some(&of_old)).unwrap(), 200);
    lab.write("clients.yaml", &new.to_config_map("gw", "clients", &[])).unwrap();
    wait_until("the end of the old authority", SOON, || is_refused(fetch(Some(&of_old))).then_some(())).unwrap();
    let reply = lab.internet.run(async move { kept.send(Request::get(SHOP, "/")).await }).unwrap();
    assert_eq!(reply.status, 200, "a connection from before goes on");
    let report = load.stop().unwrap();
    assert_eq!(report.errors(), 0, "{report}");

    lab.write("gateways.yaml", &demand("mode: AllowInsecureFallback, ")).unwrap();
    wait_until("the fallback", SOON, || fetch(None).ok().filter(|status| *status == 200)).unwrap();
    assert_eq!(fetch(Some(&of_old)).unwrap(), 200);
    let said = agent.cli(&["status", "-o", "json"]).unwrap().out;
    assert!(said.contains("InsecureFrontendValidationMode"), "{said}");
    // Without its authorities the listener is closed, and its neighbour is not.
    lab.delete("clients.yaml").unwrap();
    wait_until("the listener to close", SOON, || fetch(Some(&of_new)).is_err().then_some(())).unwrap();
    assert_eq!(status(&lab, SHOP), 200);
    let said = agent.cli(&["status", "-o", "json"]).unwrap().out;
    assert!(said.contains("NoValidCACertificate"), "{said}");
}
