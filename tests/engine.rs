//! The black-box tests: a real daemon per test, spoken to over its socket and by the stock docker CLI.

#[allow(dead_code)] // until every helper has its test
mod common;

mod engine {
    mod build;
    mod clients;
    mod crash;
    mod exec;
    mod files;
    mod house;
    mod http;
    mod images;
    mod lifecycle;
    mod load;
    mod network;
    mod run;
    mod sandbox;
    mod streams;
    mod system;
}
