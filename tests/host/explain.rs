//! `tidegate explain`: the model's verdict and the loaded program's, which must be the same for every source, interface,
//! address and port; and what really happens to the packet.

use tidegate_lab::{
    Agent, Lab,
    lab::{DATACENTRE, DATACENTRE6, DENIED, DENIED6, INTERNET, INTERNET6, OUTSIDER},
};

use crate::world::{PRIVATE, PRIVATE6, PUBLIC, PUBLIC6, World};

#[test]
fn model_and_program_agree_on_every_way_into_the_node() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    let mut reasons = std::collections::BTreeSet::new();
    let v4 = ([INTERNET, DENIED, DATACENTRE, OUTSIDER], [PUBLIC, PRIVATE, "198.51.100.77"]);
    let v6 = ([INTERNET6, DENIED6, DATACENTRE6, INTERNET6], [PUBLIC6, PRIVATE6, "2001:db8:77::1"]);
    for (sources, destinations) in [v4, v6] {
        for source in sources {
            for address in destinations {
                for port in [80, 9999] {
                    for interface in ["wan0", "lan0"] {
                        let destination = std::net::SocketAddr::new(address.parse().unwrap(), port).to_string();
                        let (source, words) = (source.to_string(), "-o");
                        let asked =
                            ["explain", "--src", &source, "--dst", &destination, "--iface", interface, words, "json"];
                        let answer = agent.cli(&asked).unwrap();
                        let said = answer.json().unwrap();
                        let verdict = said["verdict"].as_str().unwrap().to_owned();
                        let kernel = &said["kernel"]["verdicts"][0];
                        assert_eq!(kernel["agrees"], true, "{asked:?}: {said}");
                        assert_eq!(kernel["reason"], verdict.as_str(), "{asked:?}: {said}");
                        let expected = if said["isDenied"] == true { 3 } else { 0 };
                        assert_eq!(answer.code, Some(expected), "{asked:?}: {said}");
                        reasons.insert(verdict);
                    }
                }
            }
        }
    }
    let all = ["admitted", "no_frontend", "not_frontend", "source_denied", "source_not_allowed", "wrong_interface"];
    assert_eq!(reasons, all.map(str::to_owned).into(), "a reason was never reached");
}
