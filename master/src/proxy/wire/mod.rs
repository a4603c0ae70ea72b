//! HTTP/1.1 as bytes: heads of requests and answers, and where bodies end. Pure.
//!
//! A head is read once, strictly, and written anew for the other side; a body is cut free of its chunks and framed anew.
//! So no two readers can see different ends of one message, which is how requests are smuggled.

pub mod answer;
pub mod body;
pub mod date;
pub mod request;
