//! The example of the documentation, unchanged.

use std::time::Duration;

use tidegate_model::{
    BackendKey, BackendTarget, Change, Endpoint, EndpointState, Filter, Hostname, PathMatch, Protocol, RateLimit,
};

use super::*;

#[test]
fn serves_both_domains_and_says_that_all_is_well() {
    let world = World::example();
    let bad: Vec<_> = world.translator.statuses().filter(|(_, status)| !status.is_good()).collect();
    assert!(bad.is_empty(), "{bad:#?}");

    let public = world.model("public");
    assert_eq!(public.domain.interfaces, ["wan0"]);
    assert_eq!(public.domain.admission.deny.len(), 2);
    assert_eq!(public.domain.admission.allow, None);
    assert_eq!(public.domain.admission.per_source, Some(RateLimit { rate: 200, burst: 400 }));
    assert_eq!(public.domain.admission.total, Some(RateLimit { rate: 50_000, burst: 100_000 }));
    assert_eq!(public.domain.limits.cpu_millis, Some(1000));
    assert_eq!(public.domain.limits.memory_bytes, Some(512 << 20));
    let private = world.model("private");
    assert_eq!(private.domain.admission.allow, Some(vec!["10.20.0.0/16".parse().unwrap()].into()));

    let https = world.listener("public", "gw-external", "external", "https").unwrap();
    assert_eq!(https.protocol, Protocol::Https);
    assert_eq!(https.hostname, Some(Hostname::Wildcard(Arc::from("example.com"))));
    assert!(https.owns_addresses);
    assert_eq!(https.frontends.len(), 1);
    assert_eq!(https.frontends[0].port, 443);
    assert!("203.0.113.0/28".parse::<ipnet::IpNet>().unwrap().contains(&https.frontends[0].addr));
    let http = world.listener("public", "gw-external", "external", "http").unwrap();
    assert_eq!(http.frontends[0].addr, https.frontends[0].addr);
    assert_eq!(world.status(Kind::Gateway, "gw-external", "external").addresses, [https.frontends[0].addr]);

    assert_eq!(public.rules().count(), 1);
    assert_eq!(private.rules().count(), 1);
}

#[test]
fn a_rule_says_what_its_route_says() {
    let world = World::example();
    let rule = world.rule("public", "shop", "products", 0).unwrap();
    assert_eq!(rule.matches[0].path, PathMatch::Prefix(Arc::from("/api/v1/products")));
    let names: Vec<_> = rule.attachments.iter().map(|attachment| &*attachment.listener.name).collect();
    assert_eq!(names, ["http", "https"]);
    assert!(rule.attachments.iter().all(|attachment| attachment.hostnames == ["shop.example.com".parse().unwrap()]));
    let Filter::RequestHeaders(edits) = &rule.filters[0] else { panic!("{:?}", rule.filters) };
    assert_eq!(edits.add, [(Arc::from("x-canary-weight"), Arc::from("v1:90,v2:10"))]);
    let weights: Vec<_> = rule.backends.iter().map(|backend| backend.weight).collect();
    assert_eq!(weights, [90, 10]);
    let key = BackendKey::Service { name: ObjectName::new("shop", "products-v1"), port: 8080 };
    assert_eq!(rule.backends[0].target, BackendTarget::Backend(key.clone()));
    let Some(Resource::Endpoints(_, endpoints)) = world.find("public", &Key::Endpoints(key)) else { panic!() };
    let ready = |addr: &str| Endpoint { addr: addr.parse().unwrap(), state: EndpointState::Ready };
    assert_eq!(endpoints.endpoints, [ready("10.30.0.11:8080"), ready("10.30.0.12:8080")]);
    assert_eq!(rule.timeouts.request, None::<Duration>);
}

#[test]
fn a_model_holds_nothing_of_another_domain() {
    let world = World::example();
    let public: Vec<_> = world.model("public").dialled().into_iter().map(|addr| addr.to_string()).collect();
    assert_eq!(public, ["10.30.0.11:8080", "10.30.0.12:8080", "10.30.0.21:8080"]);
    let private: Vec<_> = world.model("private").dialled().into_iter().map(|addr| addr.to_string()).collect();
    assert_eq!(private, ["10.30.0.31:8080"]);
    assert!(!world.model("private").resources().any(|resource| matches!(resource, Resource::Certificate(..))));
}

#[test]
fn everything_that_the_domains_ask_for_is_enforced() {
    let world = World::example();
    for domain in ["public", "private"] {
        let conditions = world.conditions(Kind::TrafficDomain, "", domain, "");
        assert!(conditions.iter().all(|condition| condition.type_ != "Enforced"), "{conditions:?}");
    }
    let admission = &world.model("public").domain.admission;
    assert_eq!((admission.open_per_source, admission.open_total), (Some(500), Some(200_000)));
}

#[test]
fn without_its_certificate_one_listener_waits_and_the_other_serves() {
    let mut world = World::empty();
    world.put_all(read(EXAMPLE));
    let https = (Kind::Gateway, "gw-external", "external", "https");
    world.assert_condition(
        https,
        "ResolvedRefs=false InvalidCertificateRef",
        "Secret/gw-external/example-com does not exist",
    );
    assert!(world.listener("public", "gw-external", "external", "https").is_none());
    assert!(world.listener("public", "gw-external", "external", "http").is_some());
    let before = world.rule("public", "shop", "products", 0).unwrap();

    let changes = world.put_all([tls_secret("gw-external", "example-com")]);
    let delta = changes.domains[&DomainName::new("public")].delta.as_ref().unwrap();
    let keys = delta.changes.iter().map(|change| match change {
        Change::Put(resource) => resource.key(),
        Change::Remove(key) => panic!("{key:?} was removed"),
    });
    let keys: Vec<_> = keys.collect();
    assert!(matches!(keys.as_slice(), [Key::Certificate(_), Key::Listener(_)]), "{keys:?}");
    world.assert_condition(https, "Programmed=true Programmed", "");
    assert_eq!(world.rule("public", "shop", "products", 0).unwrap(), before);
}

#[test]
fn deltas_lead_to_the_model_and_count_up() {
    let mut world = World::empty();
    let mut mirror: BTreeMap<DomainName, Model> = BTreeMap::new();
    let mut objects = read(EXAMPLE);
    objects.push(tls_secret("gw-external", "example-com"));
    for object in objects {
        let changes = world.put_all([object]);
        for (name, change) in changes.domains {
            match change.event {
                DomainEvent::New(domain) => {
                    mirror.insert(name.clone(), Model::new(domain));
                }
                DomainEvent::Updated(domain) => mirror.get_mut(&name).unwrap().domain = domain,
                DomainEvent::Same => {}
                DomainEvent::Removed => panic!("{name} was removed"),
            }
            if let Some(delta) = change.delta {
                let model = mirror.get_mut(&name).unwrap();
                assert_eq!(delta.generation, model.generation.next());
                model.apply(&delta);
            }
        }
    }
    for (name, model) in &mirror {
        assert_eq!(world.translator.model(name), Some(model));
    }
    assert_eq!(mirror.len(), 2);
}

#[test]
fn a_domain_that_goes_takes_its_model_along_and_comes_back_whole() {
    let mut world = World::example();
    let before = snapshot(&world.translator);
    let generation = world.model("public").generation;
    let changes = world.delete(Kind::TrafficDomain, "", "public");
    assert_eq!(changes.domains[&DomainName::new("public")].event, DomainEvent::Removed);
    assert!(world.translator.model(&DomainName::new("public")).is_none());
    let place = (Kind::GatewayClass, "", "public", "");
    world.assert_condition(place, "Accepted=false InvalidParameters", "TrafficDomain/public does not exist");
    world.assert_condition((Kind::Gateway, "gw-external", "external", ""), "Accepted=false Pending", "does not exist");
    world.assert_condition((Kind::HTTPRoute, "shop", "products", ""), "Accepted=false Pending", "does not exist");
    assert_eq!(snapshot(&world.translator)[&DomainName::new("private")], before[&DomainName::new("private")]);

    world.put_all(read(EXAMPLE));
    assert_eq!(snapshot(&world.translator), before);
    assert!(world.model("public").generation > generation);
}
