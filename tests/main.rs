//! Every integration test, in one binary: files by behaviour, `support` starts what they need.

mod access_log;
mod admin_api;
mod certificates;
mod commands;
mod directory_live;
mod etcd_access;
mod etcd_faults;
mod etcd_source;
mod http2;
mod http_errors;
mod http_forwarding;
mod http_framing;
mod http_headers;
mod http_interim;
mod http_limits;
mod http_malformed;
mod http_retry;
mod http_streaming;
mod http_tls;
mod http_upgrade;
mod lifecycle;
mod outputs;
mod put_delete;
mod routes_live;
mod start_up;
mod support;
