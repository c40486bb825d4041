//! The stage of the measurement in the test cluster: a Gateway with a backend, and routes made one by one at the API server.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use tidegate_lab::{Cluster, Failure, Request, Session, Target, cluster::LATER, objects, wait_for};
use tokio::sync::oneshot;

use super::prober::{Served, probe};

/// The namespace.
const NAME: &str = "bench";
/// Between two routes that are watched, so that they are apart as an operator's are.
pub(super) const PAUSE: Duration = Duration::from_millis(20);

/// How long a route took to be made and to be served, from before its request was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// Until the API server had answered.
    pub(super) created: Duration,
    /// Until the prober had the first answer by the route.
    pub(super) served: Duration,
    /// Requests of the prober, and how long it took for them.
    pub(super) probes: (u64, Duration),
}

/// Status writes, as the API server counts them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Writes {
    pub(super) routes: u64,
    pub(super) gateways: u64,
}

/// The stage. Gone when dropped, some time after.
pub(super) struct Stage<'a> {
    pub(super) cluster: &'a Cluster,
    gateway: SocketAddr,
    api_server: Target,
    /// Connection to the API server; away while a request is under way.
    session: Option<Session>,
    /// Routes made.
    routes: usize,
}

impl<'a> Stage<'a> {
    pub(super) fn set(cluster: &'a Cluster) -> anyhow::Result<Self> {
        let address = cluster.set_stage(NAME, &[&objects::http_listener("http", 80)])?;
        let api_server = cluster.api_server()?;
        let target = api_server.clone();
        let session = cluster.internet.run(async move { Session::connect(&target).await })?;
        let gateway = SocketAddr::new(address, 80);
        Ok(Self { cluster, gateway, api_server, session: Some(session), routes: 0 })
    }

    /// Makes routes up to a number of all.
    pub(super) fn fill(&mut self, total: usize) -> anyhow::Result<()> {
        while self.routes < total {
            let making = self.next()?;
            let made = self.cluster.internet.run(making.run());
            self.session = Some(made?.session);
        }
        Ok(())
    }

    /// Makes one more route, with a prober that waits for it.
    pub(super) fn watch_one(&mut self) -> anyhow::Result<Sample> {
        std::thread::sleep(PAUSE);
        let host = host_of(self.routes);
        let making = self.next()?;
        let (ready, is_ready) = oneshot::channel();
        let made = self.cluster.internet.spawn(async move {
            is_ready.await.map_err(|_| Failure::Local("the prober has ended".to_owned()))?;
            making.run().await
        });
        let gateway = self.gateway;
        let served = self.cluster.internet.call(|| {
            probe(gateway, &host, || {
                // Who waits for it is gone: it says so itself.
                let _ = ready.send(());
            })
        });
        let made = self.cluster.internet.run(made)?;
        // Each of them may be why the other failed.
        let Served { at, asked, took } =
            served.with_context(|| format!("making the route: {:?}", made.as_ref().err()))?;
        let Made { session, sent, answered } = made?;
        self.session = Some(session);
        Ok(Sample { created: answered - sent, served: at - sent, probes: (asked, took) })
    }

    /// Waits until everything that was made stands in status; returns the count of writes so far.
    pub(super) fn settle(&self) -> anyhow::Result<Writes> {
        wait_for(&format!("{} attached routes", self.routes), LATER, || {
            let attached = self.cluster.attached(NAME)?;
            ensure!(attached == self.routes as u64, "{attached}");
            Ok(())
        })?;
        let routes = self.cluster.settled_status_writes("httproutes")?;
        Ok(Writes { routes, gateways: self.cluster.settled_status_writes("gateways")? })
    }

    /// The making of the next route.
    fn next(&mut self) -> anyhow::Result<Making> {
        let route = self.routes;
        let name = format!("route-{route:05}");
        let rule = objects::to_service("echo");
        let text = objects::route(NAME, &name, &format!("{NAME}/gw"), &[&host_of(route)], &[&rule]);
        let path = format!("/apis/gateway.networking.k8s.io/v1/namespaces/{NAME}/httproutes");
        let host = self.api_server.addr.to_string();
        let request = Request::post(&host, &path, text).header("content-type", "application/yaml");
        self.routes += 1;
        let session = self.session.take().context("an earlier request to the API server has failed")?;
        Ok(Making { session, request })
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        let _ = self.cluster.kubectl(&["delete", "namespace", NAME, "--ignore-not-found", "--wait=false"]);
    }
}

/// A request to the API server, with the connection for it.
struct Making {
    session: Session,
    request: Request,
}

/// The same with its answer.
struct Made {
    session: Session,
    sent: Instant,
    answered: Instant,
}

impl Making {
    async fn run(self) -> Result<Made, Failure> {
        let Self { mut session, request } = self;
        let sent = Instant::now();
        let reply = session.send(request).await?;
        let answered = Instant::now();
        match reply.status {
            201 => Ok(Made { session, sent, answered }),
            status => Err(Failure::Protocol(format!("the API server says {status}: {}", reply.text()))),
        }
    }
}

fn host_of(route: usize) -> String {
    format!("route-{route:05}.example.com")
}
