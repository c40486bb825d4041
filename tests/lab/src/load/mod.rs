//! A load generator that counts every request by what became of it. It never retries: what it reports as an error is
//! what a user without luck would have seen.

mod report;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{task::JoinHandle, time};

pub use self::report::LoadReport;
use crate::{
    client::{Request, Session, Target},
    island::Island,
};

/// What to send.
#[derive(Clone, Debug)]
pub struct LoadPlan {
    /// Where to.
    pub target: Target,
    /// What.
    pub request: Request,
    /// Connections side by side.
    pub connections: usize,
    /// Requests a second over all connections.
    pub rate: u32,
    /// Whether each request gets a connection of its own.
    pub is_new_connection_each: bool,
}

impl LoadPlan {
    /// Four keep-alive connections, 400 requests a second: busy, and far below what two shared cores can do.
    pub fn new(target: Target, request: Request) -> Self {
        Self { target, request, connections: 4, rate: 400, is_new_connection_each: false }
    }

    /// A new connection for each request.
    #[must_use]
    pub fn with_new_connections(mut self) -> Self {
        self.is_new_connection_each = true;
        self
    }

    /// Another rate.
    #[must_use]
    pub fn at_rate(mut self, rate: u32) -> Self {
        self.rate = rate;
        self
    }
}

/// Load under way. Dropping it ends it.
#[derive(Debug)]
pub struct Load {
    window: Arc<Mutex<LoadReport>>,
    total: LoadReport,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts load on an island.
    pub fn start(island: &Island, plan: &LoadPlan) -> Self {
        let window = Arc::new(Mutex::new(LoadReport::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let connections = plan.connections.max(1);
        let pause = Duration::from_secs(1) * u32::try_from(connections).unwrap_or(1) / plan.rate.max(1);
        let tasks = (0..connections)
            .map(|index| {
                let (plan, window, stop) = (plan.clone(), window.clone(), stop.clone());
                // The connections take turns within one pause.
                let offset = pause * u32::try_from(index).unwrap_or(0) / u32::try_from(connections).unwrap_or(1);
                island.spawn(async move {
                    time::sleep(offset).await;
                    drive(&plan, pause, &window, &stop).await;
                })
            })
            .collect();
        Self { window, total: LoadReport::default(), stop, tasks }
    }

    /// What happened since the last call.
    pub fn take(&mut self) -> LoadReport {
        let report = std::mem::take(&mut *self.window.lock().unwrap_or_else(PoisonError::into_inner));
        self.total.merge(&report);
        report
    }

    /// What happened so far, in all.
    pub fn total(&mut self) -> &LoadReport {
        self.take();
        &self.total
    }

    /// Lets every request under way come to its end, and reports all.
    ///
    /// # Errors
    /// When requests do not end although their limits have passed.
    pub fn stop(mut self) -> anyhow::Result<LoadReport> {
        self.stop.store(true, Ordering::Relaxed);
        crate::wait::wait_until("the load's requests to end", Duration::from_secs(30), || {
            self.tasks.iter().all(JoinHandle::is_finished).then_some(())
        })?;
        self.take();
        Ok(std::mem::take(&mut self.total))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn drive(plan: &LoadPlan, pause: Duration, window: &Mutex<LoadReport>, stop: &AtomicBool) {
    let mut ticks = time::interval(pause);
    // A stalled request must not be followed by a burst.
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    let mut session: Option<Session> = None;
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let start = Instant::now();
        let outcome = async {
            let mut current = match session.take() {
                Some(current) if !plan.is_new_connection_each && !current.is_closed() => current,
                _ => Session::connect(&plan.target).await?,
            };
            let reply = current.send(plan.request.clone()).await?;
            session = Some(current);
            Ok(reply)
        };
        let outcome = outcome.await;
        window.lock().unwrap_or_else(PoisonError::into_inner).push(start.elapsed(), &outcome);
    }
}
