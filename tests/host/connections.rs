//! Very many connections, and none left to give.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tidegate_lab::{Agent, AgentOptions, Lab, process, wait_until};

use crate::world::{CONSOLE, SHOP, SOON, World, get, private, public};

/// A process that holds idle connections.
struct Holder {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Holder {
    fn start(lab: &Lab, count: usize) -> Self {
        let mut command = Command::new(process::program("tidegate-lab").unwrap());
        command
            .args(["hold", &public().addr.to_string(), &count.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = lab.internet.start(&mut command).unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn next(&mut self) -> String {
        self.lines.next().map(|line| line.unwrap()).unwrap_or_else(|| "ended".into())
    }

    fn open(&mut self) -> usize {
        self.child.stdin.as_mut().unwrap().write_all(b"check\n").unwrap();
        self.next().strip_prefix("open ").unwrap().parse().unwrap()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

#[test]
fn fifteen_thousand_idle_connections_are_kept_within_memory() {
    const COUNT: usize = 15_000;
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    // Any answer makes a connection known to the proxy; a route is not needed for that.
    let agent = Agent::start(&lab).unwrap();
    let worker = agent.worker_pid("public").unwrap();
    let before = resident(worker);
    let mut holder = Holder::start(&lab, COUNT);
    assert_eq!(holder.next(), format!("holding {COUNT}"));
    assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200);
    assert_eq!(holder.open(), COUNT);
    let each = (resident(worker) - before) / COUNT as u64;
    // The domain of the example has 512 MiB; 16 KiB a connection leave half of it.
    assert!(each < 16 * 1024, "{each} bytes a connection");
    assert_eq!(agent.worker_pid("public"), Some(worker));
}

#[test]
fn without_descriptors_new_connections_are_refused_and_counted_and_nothing_spins() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let options = AgentOptions { open_files: Some(256), ..AgentOptions::default() };
    let agent = Agent::start_with(&lab, options).unwrap();
    let worker = agent.worker_pid("public").unwrap();
    assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200);
    // Connections beyond the limit: held by threads of the test, not all of them get an answer.
    let held: Vec<_> = (0..600)
        .map(|_| lab.internet.spawn(async { public().within(Duration::from_secs(5)).connect_tcp().await }))
        .collect();
    wait_until("attempts to end", Duration::from_secs(20), || {
        held.iter().all(tokio::task::JoinHandle::is_finished).then_some(())
    })
    .unwrap();
    let refused = wait_until("refusals to be counted", SOON, || {
        let count = agent.metric(tidegate_lab::metrics::names::CONNECTIONS_REFUSED, &[("domain", "public")]).ok()?;
        (count > 0.0).then_some(count)
    })
    .unwrap();
    assert!(refused > 0.0);
    let start = process::cpu_time(worker).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let used = process::cpu_time(worker).unwrap() - start;
    assert!(used < Duration::from_millis(500), "the worker spins: {used:?} of CPU in two idle seconds");
    assert_eq!(get(&lab.datacentre, &private(), CONSOLE, "/").unwrap().status, 200, "the other domain");
    drop(held.into_iter().map(|task| lab.internet.run(task)).collect::<Vec<_>>());
    wait_until("service to go on", SOON, || {
        get(&lab.internet, &public(), SHOP, "/").ok().filter(|reply| reply.status == 200)
    })
    .unwrap();
    assert_eq!(agent.worker_pid("public"), Some(worker));
}

/// Resident memory in bytes.
fn resident(pid: u32) -> u64 {
    let field = process::status_field(pid, "VmRSS").unwrap();
    field.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}
