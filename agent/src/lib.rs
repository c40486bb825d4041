//! The agent's package: init, the agent and the worker's entry, and the command line.

pub mod admin;
pub mod app;
pub mod cgroup;
pub mod check;
pub mod cli;
pub mod control;
pub mod explain;
pub mod init;
pub mod kube;
pub mod metrics;
pub mod net;
pub mod options;
pub mod privileges;
pub mod resolver;
pub mod source;
pub mod state;
pub mod status;
pub mod supervise;
pub mod sys;
pub mod tier;
pub mod verdicts;
