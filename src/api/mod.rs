//! The Engine API: the route table, one file per resource, versions' shapes, kinds to status codes.
