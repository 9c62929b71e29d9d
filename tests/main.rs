//! Every integration test, in one binary: files by behaviour, `support` starts what they need.

mod access_log;
mod certificates;
mod directory_live;
mod etcd_access;
mod etcd_source;
mod lifecycle;
mod put_delete;
mod routes_live;
mod start_up;
mod support;
