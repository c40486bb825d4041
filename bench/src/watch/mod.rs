//! In the test cluster: from a created HTTPRoute to the first request that it answers, the status writes of a thousand
//! routes, memory and CPU of the agent with five thousand.

mod prober;
mod stage;

use std::{thread, time::Duration};

use anyhow::Context;
use serde_json::{Value, json};
use tidegate_lab::{Cluster, Metrics, process::cpu_time};

use self::{
    prober::INTERVAL,
    stage::{PAUSE, Sample, Stage, Writes},
};
use crate::{
    Effort,
    memory::{self, Memory, mib},
    report::Report,
};

/// Routes that are there before the second series.
const EXISTING: usize = 5_000;
/// How long the agent is left alone for its CPU at rest.
const REST: Duration = Duration::from_secs(30);
/// What the agent itself says of the time from an event's arrival to the worker's ack, and the bucket that is reported.
const APPLIED: &str = "tidegate_change_applied_seconds";
const APPLIED_WITHIN: &str = "0.01";

/// Processes of the deployed agent, by what their command lines begin with.
const PROCESSES: [(&str, &[&str]); 4] = [
    ("init", &["run"]),
    ("agent", &["agent"]),
    ("worker public", &["worker", "public"]),
    ("worker private", &["worker", "private"]),
];

/// Routes made one by one.
struct Series {
    existing: usize,
    samples: Vec<Sample>,
    writes: Writes,
    applied: Applied,
}

/// Changes as the agent's own metric has them: how many, seconds of all, how many of them within [`APPLIED_WITHIN`].
#[derive(Clone, Copy, Debug)]
struct Applied {
    count: f64,
    seconds: f64,
    within: f64,
}

pub(crate) fn measure(effort: Effort) -> anyhow::Result<Report> {
    let cluster = Cluster::find()?;
    let mut stage = Stage::set(&cluster)?;
    stage.settle()?;
    let empty = memory_of_all(&cluster)?;
    let first = Series::run(&mut stage, 0, effort.samples)?;
    stage.fill(EXISTING)?;
    stage.settle()?;
    let full = memory_of_all(&cluster)?;
    let rest = rest(&cluster)?;
    let second = Series::run(&mut stage, EXISTING, effort.samples)?;

    let mut report = Report::new("watch", "Created at the API server to served", method(effort.samples));
    report.columns(&["routes before", "from", "to", "mean ms", "p50 ms", "p99 ms", "max ms"]);
    for series in [&first, &second] {
        series.push_times(&mut report);
    }
    report.columns(&["routes before", "routes made", "status writes of routes", "of the Gateway"]);
    for Series { existing, samples, writes, .. } in [&first, &second] {
        let numbers = [*existing as u64, samples.len() as u64, writes.routes, writes.gateways];
        report.push(numbers.map(|number| number.to_string()).to_vec());
    }
    report.columns(&["", "Pss", "Rss", "anonymous"]);
    for (routes, all) in [(0, &empty), (EXISTING, &full)] {
        for (name, memory) in all {
            push_memory(&mut report, &format!("{routes} routes: {name}"), *memory);
        }
        push_memory(&mut report, &format!("{routes} routes: all"), sum(all));
    }
    report.columns(&[&format!("CPU in {} s at rest, {EXISTING} routes", REST.as_secs()), "ms", "of one core"]);
    for (name, used) in &rest {
        let part = used.as_secs_f64() / REST.as_secs_f64();
        report.push(vec![
            (*name).to_owned(),
            format!("{:.1}", used.as_secs_f64() * 1e3),
            format!("{:.3} %", part * 1e2),
        ]);
    }
    for series in [&first, &second] {
        report.note(series.describe());
    }
    report.raw(json!({
        "series": [first.to_json(), second.to_json()],
        "memory": [memory_json(0, &empty), memory_json(EXISTING, &full)],
        "rest": {"seconds": REST.as_secs(), "cpu_us": rest.iter().map(|(name, used)| json!({"name": name, "used": used.as_micros() as u64})).collect::<Vec<_>>()},
    }));
    Ok(report)
}

fn method(samples: usize) -> String {
    format!(
        "the test cluster (`cargo xtask cluster`: etcd, kube-apiserver, kubelet, containerd and the others on the same two cores, \
         etcd without fsync), the release agent deployed with deploy/daemonset/overlays/public-private, under its ServiceAccount, with \
         its access log; one Gateway, two pods behind one Service. HTTPRoutes with a host name of their own each are created one by one \
         with an HTTP client of the bench's on an open connection to the API server, {samples} at 0 routes and {samples} more at \
         {EXISTING}; none is deleted. Each is watched by a prober behind the domain's NIC, on an open connection, every {INTERVAL:?} \
         and from before the create is sent: \"served\" is when it has read the first answer with 200, so up to {INTERVAL:?} and one \
         exchange are the prober's own. {PAUSE:?} later comes the next. A time from the API server's answer to \"served\" is negative where \
         the route is served before the answer is read: the API server answers its client and tells its watchers at once. Status \
         writes: apiserver_request_total of subresource status, until two seconds pass without any. Memory: \
         /proc/PID/smaps_rollup, when all statuses are written."
    )
}

/// Begin and end of a time that is reported, since the request was sent.
type Ends = fn(&Sample) -> (Duration, Duration);

impl Series {
    /// Makes routes and watches each.
    fn run(stage: &mut Stage<'_>, existing: usize, count: usize) -> anyhow::Result<Self> {
        let writes = stage.settle()?;
        let applied = Applied::read(stage.cluster)?;
        let samples = (0..count).map(|_| stage.watch_one()).collect::<anyhow::Result<_>>()?;
        let (writes_after, applied_after) = (stage.settle()?, Applied::read(stage.cluster)?);
        Ok(Self {
            existing,
            samples,
            writes: Writes {
                routes: writes_after.routes - writes.routes,
                gateways: writes_after.gateways - writes.gateways,
            },
            applied: Applied {
                count: applied_after.count - applied.count,
                seconds: applied_after.seconds - applied.seconds,
                within: applied_after.within - applied.within,
            },
        })
    }

    fn push_times(&self, report: &mut Report) {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let rows: [(&str, &str, Ends); 3] = [
            ("the API server's answer", "served", |sample| (sample.created, sample.served)),
            ("request sent", "served", |sample| (Duration::ZERO, sample.served)),
            ("request sent", "the API server's answer", |sample| (Duration::ZERO, sample.created)),
        ];
        for (from, to, of) in rows {
            let mut times: Vec<f64> = self.samples.iter().map(of).map(|(begin, end)| ms(end) - ms(begin)).collect();
            times.sort_by(f64::total_cmp);
            let mean = times.iter().sum::<f64>() / times.len() as f64;
            let at = |part: f64| times[((times.len() as f64 * part).ceil() as usize).saturating_sub(1)];
            let mut cells = vec![self.existing.to_string(), from.to_owned(), to.to_owned()];
            cells.extend([mean, at(0.5), at(0.99), at(1.0)].map(|time| format!("{time:.2}")));
            report.push(cells);
        }
    }

    fn describe(&self) -> String {
        let Applied { count, seconds, within } = self.applied;
        let probes: u64 = self.samples.iter().map(|sample| sample.probes.0).sum();
        let probing: Duration = self.samples.iter().map(|sample| sample.probes.1).sum();
        format!(
            "At {} routes: the prober asked every {:.2} ms in the mean. From an event's arrival in the agent to the worker's ack ({APPLIED}): \
             mean {:.2} ms, {within} of {count} within {APPLIED_WITHIN} s.",
            self.existing,
            probing.as_secs_f64() * 1e3 / probes as f64,
            seconds * 1e3 / count,
        )
    }

    fn to_json(&self) -> Value {
        let us = |of: fn(&Sample) -> Duration| -> Vec<u64> {
            self.samples.iter().map(|sample| of(sample).as_micros() as u64).collect()
        };
        json!({
            "existing": self.existing,
            "created_us": us(|sample| sample.created),
            "served_us": us(|sample| sample.served),
            "status_writes": {"routes": self.writes.routes, "gateways": self.writes.gateways},
            "applied": {"count": self.applied.count, "seconds": self.applied.seconds, "within_10_ms": self.applied.within},
        })
    }
}

impl Applied {
    fn read(cluster: &Cluster) -> anyhow::Result<Self> {
        let metrics: Metrics = cluster.metrics()?;
        let sum = |part: &str, labels: &[(&str, &str)]| metrics.sum(&format!("{APPLIED}_{part}"), labels);
        Ok(Self {
            count: sum("count", &[("domain", "public")]),
            seconds: sum("sum", &[("domain", "public")]),
            within: sum("bucket", &[("domain", "public"), ("le", APPLIED_WITHIN)]),
        })
    }
}

/// Process ids of the deployed agent by name.
fn processes(cluster: &Cluster) -> anyhow::Result<Vec<(&'static str, u32)>> {
    let find = |(name, words)| Ok((name, cluster.agent_pid(words).with_context(|| format!("no {name}"))?));
    PROCESSES.into_iter().map(find).collect()
}

fn memory_of_all(cluster: &Cluster) -> anyhow::Result<Vec<(&'static str, Memory)>> {
    processes(cluster)?.into_iter().map(|(name, pid)| Ok((name, memory::of(pid)?))).collect()
}

/// CPU time that each process uses while nothing is asked of it.
fn rest(cluster: &Cluster) -> anyhow::Result<Vec<(&'static str, Duration)>> {
    let processes = processes(cluster)?;
    let before = processes.iter().map(|(_, pid)| cpu_time(*pid)).collect::<anyhow::Result<Vec<_>>>()?;
    thread::sleep(REST);
    let used =
        |((name, pid), before): ((&'static str, u32), Duration)| Ok((name, cpu_time(pid)?.saturating_sub(before)));
    processes.into_iter().zip(before).map(used).collect()
}

fn sum(all: &[(&str, Memory)]) -> Memory {
    let sum = |of: fn(&Memory) -> u64| all.iter().map(|(_, memory)| of(memory)).sum();
    Memory { pss: sum(|memory| memory.pss), rss: sum(|memory| memory.rss), anonymous: sum(|memory| memory.anonymous) }
}

fn push_memory(report: &mut Report, name: &str, memory: Memory) {
    report.push(vec![name.to_owned(), mib(memory.pss), mib(memory.rss), mib(memory.anonymous)]);
}

fn memory_json(routes: usize, all: &[(&str, Memory)]) -> Value {
    let one = |(name, memory): &(&str, Memory)| json!({"name": name, "pss_kib": memory.pss, "rss_kib": memory.rss, "anonymous_kib": memory.anonymous});
    json!({"routes": routes, "processes": all.iter().map(one).collect::<Vec<_>>()})
}
