//! HTTP/1: bytes in, bytes out; knows nothing of containers.
