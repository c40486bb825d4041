//! What the ServiceAccount may do: enough, and no more. Each right is used once every kind of object was there and has changed.

use serde_json::Value;
use tidegate_lab::{Authority, objects, wait_for};

use crate::kit::{AGENTS, Cluster, LATER};

/// Namespace, TrafficDomain, class and ClusterTrustBundle of the test.
const NAME: &str = "rights";
/// What has conditions: in its status, or in that of each of its parents.
const OBJECTS: [&str; 11] = [
    "trafficdomain/rights",
    "gatewayclass/rights",
    "gateway/gw",
    "listenerset/more",
    "httproute/http",
    "grpcroute/grpc",
    "tlsroute/tls",
    "tcproute/tcp",
    "udproute/udp",
    "backendtlspolicy/secure",
    "backends.tidegate.dev/outside",
];

#[test]
fn the_service_account_may_read_what_it_watches_and_write_status_alone() {
    let cluster = Cluster::find().unwrap();
    let account = format!("--as=system:serviceaccount:{AGENTS}:tidegate");
    let may = |words: &[&str]| {
        let said = cluster.kubectl(&[&["auth", "can-i"], words, &[account.as_str(), "-A"]].concat());
        // The answer "no" is exit code 1.
        said.is_ok_and(|said| said.trim() == "yes")
    };
    for allowed in [
        &["list", "httproutes.gateway.networking.k8s.io"][..],
        &["patch", "gateways.gateway.networking.k8s.io", "--subresource=status"],
    ] {
        assert!(may(allowed), "{allowed:?}");
    }
    for denied in [
        ["update", "gateways.gateway.networking.k8s.io"],
        ["delete", "httproutes.gateway.networking.k8s.io"],
        ["update", "secrets"],
        ["create", "pods"],
        ["list", "pods"],
    ] {
        assert!(!may(&denied), "{denied:?}");
    }
}

/// A domain of its own, whose NIC is not there: nothing of it is served, all of it is judged. Gone when dropped.
struct Everything<'a> {
    cluster: &'a Cluster,
    authority: Authority,
    /// A Secret with a certificate of the authority's.
    secret: String,
}

impl<'a> Everything<'a> {
    fn make(cluster: &'a Cluster) -> Self {
        let authority = Authority::create().unwrap();
        let secret = authority.issue(&["*.example.com"]).unwrap().to_secret(NAME, "cert");
        cluster.kubectl(&["delete", "namespace", NAME, "--ignore-not-found", "--wait"]).unwrap();
        Self { cluster, authority, secret }
    }

    /// One object of each kind; the `spec` of each is another in each round.
    fn apply(&self, round: u16) {
        let route = |kind: &str, name: &str, parent: &str, hostnames: &str, backend: &str| {
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {NAME}}}\n\
                 spec: {{parentRefs: [{{{parent}}}], {hostnames}rules: [{{backendRefs: [{{{backend}, weight: {}}}]}}]}}\n",
                round + 1
            )
        };
        let gw = |listener: &str| format!("name: gw, sectionName: {listener}");
        let gateway = objects::gateway(
            NAME,
            "gw",
            NAME,
            &[],
            &[
                &objects::http_listener("http", 80),
                &objects::https_listener("https", 443, "*.example.com", "cert"),
                "{name: tls, protocol: TLS, port: 8443, tls: {mode: Passthrough}}",
                "{name: tcp, protocol: TCP, port: 9000}",
                "{name: udp, protocol: UDP, port: 9000}",
            ],
        );
        let more = format!(
            "  allowedListeners: {{namespaces: {{from: Same}}}}\n  infrastructure: {{labels: {{round: \"{round}\"}}}}\n"
        );
        let service = "name: echo, port: 8080";
        let all = objects::join([
            objects::namespace(NAME, "stage: \"true\""),
            objects::domain(NAME, "absent0", &["203.0.113.240/29"], &[&format!("shards: {}", round + 1)]),
            format!("{}  description: round {round}\n", objects::class(NAME)),
            gateway + &more,
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {{name: more, namespace: {NAME}}}\n\
                 spec: {{parentRef: {{name: gw}}, listeners: [{{name: more, protocol: HTTP, port: {}}}]}}\n",
                8000 + round
            ),
            self.secret.clone(),
            self.authority.to_config_map(NAME, "ca", &[]),
            format!(
                "apiVersion: certificates.k8s.io/v1\nkind: ClusterTrustBundle\nmetadata: {{name: {NAME}}}\n\
                 spec: {{trustBundle: {}}}\n",
                Value::from(self.authority.pem())
            ),
            objects::service(NAME, "echo"),
            objects::service(NAME, "secure"),
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: secure, namespace: {NAME}}}\n\
                 spec:\n  targetRefs: [{{group: \"\", kind: Service, name: secure}}]\n  validation:\n    hostname: \
                 round-{round}.example.com\n    caCertificateRefs: [{{group: \"\", kind: ConfigMap, name: ca}}, \
                 {{group: certificates.k8s.io, kind: ClusterTrustBundle, name: {NAME}}}]\n"
            ),
            format!(
                "apiVersion: tidegate.dev/v1alpha1\nkind: Backend\nmetadata: {{name: outside, namespace: {NAME}}}\n\
                 spec: {{endpoints: [{{ip: {{address: 192.0.2.77, port: {}}}}}]}}\n",
                7000 + round
            ),
            route("HTTPRoute", "http", &gw("http"), "", "name: secure, port: 8080"),
            route("HTTPRoute", "outside", &gw("https"), "", "group: tidegate.dev, kind: Backend, name: outside"),
            route("GRPCRoute", "grpc", &gw("https"), "hostnames: [grpc.example.com], ", service),
            route("TLSRoute", "tls", &gw("tls"), "hostnames: [tls.example.com], ", service),
            route("TCPRoute", "tcp", &gw("tcp"), "", service),
            route("UDPRoute", "udp", &gw("udp"), "", service),
        ]);
        self.cluster.apply(&all).unwrap();
    }

    /// Waits until each object's newest generation was judged, and well.
    fn wait_accepted(&self) {
        for name in OBJECTS {
            wait_for(&format!("{name} to be accepted"), LATER, || {
                let object = self.cluster.object(NAME, name)?;
                let status = &object["status"];
                let [parents, ancestors] = ["parents", "ancestors"].map(|list| &status[list][0]);
                let of = [status, parents, ancestors].into_iter().find(|of| of["conditions"].is_array());
                let conditions = of.and_then(|of| of["conditions"].as_array()).into_iter().flatten();
                let accepted = conditions.into_iter().find(|condition| condition["type"] == "Accepted");
                let is_new = accepted.is_some_and(|accepted| {
                    accepted["status"] == "True" && accepted["observedGeneration"] == object["metadata"]["generation"]
                });
                anyhow::ensure!(is_new, "{status}");
                Ok(())
            })
            .unwrap();
        }
    }
}

impl Drop for Everything<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- what the agent says ---\n{}\n---", self.cluster.agent_log());
        }
        let all = ["namespace/rights", "gatewayclass/rights", "trafficdomain/rights", "clustertrustbundle/rights"];
        for object in all {
            let _ = self.cluster.kubectl(&["delete", object, "--ignore-not-found", "--wait"]);
        }
    }
}

#[test]
fn every_right_is_used_and_none_is_lacking() {
    let cluster = Cluster::find().unwrap();
    let everything = Everything::make(&cluster);
    for round in 0..2 {
        everything.apply(round);
        everything.wait_accepted();
    }
    // Nothing waits for the last status writes but this.
    wait_for("every right to be used", LATER, || cluster.xtask(&["rights"])).unwrap();
}
