//! HTTP as rules, filters and both sides of the proxy see it: heads and bodies of the proxy's own, and the codecs behind
//! them. Nothing here knows a socket's owner, a rule or a backend.

pub mod body;
pub mod h1;
pub mod h2;
pub mod head;
pub mod hop;
pub mod known;
