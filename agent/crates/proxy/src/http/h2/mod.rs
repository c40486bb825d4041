//! HTTP/2 through hyper: conversion between its types and the proxy's own. Both sides use it.

pub mod body;
pub mod head;
