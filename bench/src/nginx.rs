//! nginx as the named peer and as the backend: one worker, keep-alive upstream, no access log, the same header work.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context;
use tidegate_lab::{certificate::Leaf, island::Island, process, wait_until};

/// A running nginx. Ended on drop.
pub(crate) struct Nginx {
    master: Child,
    folder: PathBuf,
    /// Process id of its only worker.
    pub(crate) worker: u32,
}

impl Nginx {
    /// A backend that answers every request with 1 KiB, on the core of the load.
    pub(crate) fn backend(island: &Island, folder: &Path, addr: SocketAddr) -> anyhow::Result<Self> {
        let server = format!("server {{ listen {addr}; location / {{ return 200 '{}'; }} }}", "x".repeat(1024));
        Self::start(island, &folder.join("nginx-backend"), "1", &server)
    }

    /// A proxy in front of the backend: clear text on `port`, TLS with HTTP/2 and HTTP/1.1 on `port + 1`.
    pub(crate) fn proxy(
        island: &Island,
        folder: &Path,
        name: &str,
        addr: SocketAddr,
        backend: SocketAddr,
        leaf: &Leaf,
    ) -> anyhow::Result<Self> {
        let folder = folder.join(name);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("chain.pem"), &leaf.chain_pem)?;
        fs::write(folder.join("key.pem"), &leaf.key_pem)?;
        let tls = SocketAddr::new(addr.ip(), addr.port() + 1);
        let server = format!(
            "upstream backend {{ server {backend}; keepalive 256; keepalive_requests 100000000; }}\n\
             server {{\n listen {addr};\n listen {tls} ssl http2;\n ssl_certificate {folder}/chain.pem;\n \
             ssl_certificate_key {folder}/key.pem;\n ssl_protocols TLSv1.3;\n\
             location / {{\n proxy_pass http://backend;\n proxy_http_version 1.1;\n proxy_set_header Connection \"\";\n \
             proxy_set_header Host $host;\n proxy_set_header X-Forwarded-For $remote_addr;\n \
             proxy_set_header X-Forwarded-Proto $scheme;\n proxy_set_header X-Forwarded-Host $host;\n }}\n}}",
            folder = folder.display()
        );
        // Core 1: the affinity mask is read from the right.
        Self::start(island, &folder, "10", &server)
    }

    fn start(island: &Island, folder: &Path, affinity: &str, server: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(folder.join("tmp"))?;
        let config = folder.join("nginx.conf");
        let at = folder.display();
        fs::write(
            &config,
            format!(
                "daemon off;\nworker_processes 1;\nworker_cpu_affinity {affinity};\nworker_rlimit_nofile 16384;\n\
                 error_log {at}/error.log warn;\npid {at}/nginx.pid;\nuser root;\n\
                 events {{ worker_connections 8192; }}\n\
                 http {{\n access_log off;\n keepalive_requests 100000000;\n keepalive_timeout 600s;\n\
                 client_body_temp_path {at}/tmp/body;\n proxy_temp_path {at}/tmp/proxy;\n fastcgi_temp_path {at}/tmp/fastcgi;\n\
                 uwsgi_temp_path {at}/tmp/uwsgi;\n scgi_temp_path {at}/tmp/scgi;\n{server}\n}}\n"
            ),
        )?;
        let mut command = Command::new("nginx");
        command.arg("-p").arg(folder).arg("-c").arg(&config).stdin(Stdio::null()).stderr(Stdio::null());
        let mut master = island.start(&mut command).context("start nginx (apt-get install nginx)")?;
        let pid = master.id();
        let worker = wait_until("nginx's worker", Duration::from_secs(5), || {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
            children.split_whitespace().next()?.parse().ok()
        });
        let worker = worker.map_err(|error| {
            let _ = master.kill();
            let log = fs::read_to_string(folder.join("error.log")).unwrap_or_default();
            error.context(log)
        })?;
        Ok(Self { master, folder: folder.to_owned(), worker })
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        process::signal(self.master.id(), nix::sys::signal::Signal::SIGTERM);
        let _ = self.master.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
