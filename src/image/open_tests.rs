//! The store survives: torn, missing and foreign files at the next start.

use super::*;
use crate::image::digest::chain_ids;
use crate::image::names::Extra;
use crate::image::scratch::Scratch;
use crate::image::support::{WORKER, add_image, add_layer, diff, open, save};
use std::fs;

fn entries(scratch: &Scratch, dir: &str) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(scratch.path().join(dir)).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn everything_comes_back_after_a_restart() {
    let scratch = Scratch::new("store-restart");
    let mut store = open(&scratch);
    let base = add_image(&mut store, "base", &[diff("a")], Extra::default());
    let top = add_image(&mut store, "top:1", &[diff("a"), diff("b")], Extra { parent: Some(base), built: true, ..Extra::default() });
    drop(store);
    let mut store = open(&scratch);
    assert!(!store.is_damaged());
    assert_eq!(store.resolve("top:1").unwrap().id, top);
    assert_eq!(store.resolve(&top.short()).unwrap().extra, Extra { parent: Some(base), tagged: 5, built: true });
    assert!(store.get(base).unwrap().has_children());
    assert_eq!(store.size_of(store.get(top).unwrap()), 20);
    assert_eq!(store.lower_numbers(store.get(top).unwrap().top), [2, 1]);
    assert_eq!(store.resolve("nosuch").unwrap_err().message, "No such image: nosuch:latest");
    assert_eq!(store.prune_layers(), 0);
    // What the worker left in staging is this start's trash.
    assert_eq!(store.take_trash().len(), 1);
}

#[test]
fn removing_an_image_takes_the_layers_only_it_needs() {
    let scratch = Scratch::new("store-remove");
    let mut store = open(&scratch);
    let base = add_image(&mut store, "base", &[diff("a")], Extra::default());
    let top = add_image(&mut store, "top", &[diff("a"), diff("b")], Extra::default());
    store.untag(&Reference::parse("top:latest").unwrap()).unwrap();
    assert_eq!(store.remove_image(top), [chain_ids(&[diff("a"), diff("b")])[1]]);
    assert_eq!(entries(&scratch, "layers"), ["1"]);
    assert_eq!(entries(&scratch, "images"), [format!("{}.json", base.hex())]);
    assert!(store.hold("container", diff("a")));
    store.untag(&Reference::parse("base:latest").unwrap()).unwrap();
    assert!(store.remove_image(base).is_empty());
    assert_eq!(entries(&scratch, "layers"), ["1"]);
    store.release("container");
    assert!(entries(&scratch, "layers").is_empty());
    assert!(store.take_trash().len() >= 4);
}

#[test]
fn torn_references_fall_back_to_the_generation_before() {
    let scratch = Scratch::new("store-torn-refs");
    let mut store = open(&scratch);
    let a = add_image(&mut store, "a", &[diff("a")], Extra::default());
    let b = add_image(&mut store, "b", &[diff("b")], Extra::default());
    drop(store);
    let refs = scratch.path().join("refs.json");
    let whole = fs::read(&refs).unwrap();
    fs::write(&refs, &whole[..whole.len() / 2]).unwrap();
    let mut store = open(&scratch);
    assert_eq!(store.resolve("a").unwrap().id, a);
    assert!(store.resolve("b").is_err());
    assert!(store.get(b).is_some(), "the image itself is kept");
    assert!(store.is_damaged());
    assert_eq!(store.prune_layers(), 0);
    assert_eq!(entries(&scratch, "lost").len(), 1);
}

#[test]
fn without_any_references_nothing_is_pruned() {
    let scratch = Scratch::new("store-no-refs");
    let mut store = open(&scratch);
    let a = add_image(&mut store, "a", &[diff("a")], Extra::default());
    add_layer(&mut store, &[diff("orphan")]);
    drop(store);
    for name in ["refs.json", "refs.json.prev"] {
        fs::write(scratch.path().join(name), b"").unwrap();
    }
    let mut store = open(&scratch);
    assert!(store.get(a).is_some() && store.resolve("a").is_err());
    assert_eq!(store.prune_layers(), 0);
    save(&store);
    drop(store);
    let mut store = open(&scratch);
    assert_eq!(store.prune_layers(), 1, "a whole index again: the orphan goes");
}

#[test]
fn damaged_objects_go_to_lost_and_the_rest_stays() {
    let scratch = Scratch::new("store-damaged");
    let mut store = open(&scratch);
    let a = add_image(&mut store, "a", &[diff("a")], Extra::default());
    let b = add_image(&mut store, "b", &[diff("b")], Extra::default());
    let c = add_image(&mut store, "c", &[diff("c")], Extra::default());
    drop(store);
    let document = scratch.path().join("images").join(format!("{}.json", a.hex()));
    let mut bytes = fs::read(&document).unwrap();
    bytes[10] ^= 1;
    fs::write(&document, bytes).unwrap();
    fs::write(scratch.path().join("layers/2/meta.json"), b"{}").unwrap();
    fs::write(scratch.path().join("layers/garbage"), b"").unwrap();
    let store = open(&scratch);
    assert_eq!(store.images().map(|image| image.id).collect::<Vec<_>>(), [c]);
    assert!(store.get(b).is_none(), "its layer is lost");
    assert_eq!(entries(&scratch, "lost").len(), 4);
    assert_eq!(entries(&scratch, "layers"), ["1", "3"]);
}

#[test]
fn parents_never_make_a_circle() {
    let scratch = Scratch::new("store-circle");
    let mut store = open(&scratch);
    let a = add_image(&mut store, "a", &[diff("a")], Extra::default());
    let b = add_image(&mut store, "b", &[diff("b")], Extra { parent: Some(a), ..Extra::default() });
    assert!(store.set_parent(a, b).is_err());
    assert!(store.set_parent(a, a).is_err());
}

#[test]
fn staged_names_stay_in_the_workers_place() {
    let scratch = Scratch::new("store-staged");
    let mut store = open(&scratch);
    for name in ["", "..", "a/b", "a\0b", "../8/layer"] {
        assert!(store.image_ready(WORKER, name, diff("x"), Extra::default()).is_err(), "{name:?}");
    }
}
