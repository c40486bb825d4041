//! The client: which API server, as whom.

use std::time::Duration;

use kube::{
    Client, Config,
    config::{InferConfigError, KubeConfigOptions, KubeconfigError},
};

/// How long connecting may take, TLS included. Another attempt costs little, a lost packet is sent again after one second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig does not say how to reach the context.
    #[error("kubeconfig: {0}; correct KUBECONFIG or the context of --source kube=CONTEXT")]
    Context(#[source] KubeconfigError),
    /// Neither a kubeconfig nor a service account.
    #[error("{0}; set KUBECONFIG, or run in a pod with a service account")]
    Infer(#[source] InferConfigError),
    /// The configuration cannot be used.
    #[error("the cluster's configuration cannot be used: {0}")]
    Client(#[source] kube::Error),
}

/// Makes a client for a context of the kubeconfig; without one, for the kubeconfig's own, else for the cluster that this
/// pod runs in. Does not connect yet. Tokens and CAs of service accounts are read again when they are rotated.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(context: Option<&str>) -> Result<Client, ConnectError> {
    let mut config = match context {
        Some(context) => {
            let options = KubeConfigOptions { context: Some(context.to_owned()), ..KubeConfigOptions::default() };
            Config::from_kubeconfig(&options).await.map_err(ConnectError::Context)?
        }
        None => Config::infer().await.map_err(ConnectError::Infer)?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // Each caller retries in its own way; a retry below it would hide how the API server fares.
    config.default_retry = false;
    Client::try_from(config).map_err(ConnectError::Client)
}
