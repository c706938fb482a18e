//! Build arguments: what the request gives, what ARG allows, and who sees which.

use std::collections::{BTreeMap, BTreeSet};

/// Proxy settings may be given without any ARG, and leave no trace in the image's history.
const TRANSPARENT: [&str; 10] =
    ["ALL_PROXY", "FTP_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "all_proxy", "ftp_proxy", "http_proxy", "https_proxy", "no_proxy"];

/// The arguments of one stage; cloned from the Dockerfile's at its FROM.
#[derive(Clone, Debug, Default)]
pub struct BuildArgs {
    /// `buildargs` of the request; `None` names an argument without a value.
    given: BTreeMap<String, Option<String>>,
    /// ARG before the first FROM, and the platform's.
    global: BTreeMap<String, Option<String>>,
    /// ARG in this stage.
    allowed: BTreeMap<String, Option<String>>,
    referenced: BTreeSet<String>,
}

impl BuildArgs {
    /// `platforms` are BUILDPLATFORM, TARGETARCH and so on.
    pub fn new(given: BTreeMap<String, Option<String>>, platforms: &[(&str, String)]) -> BuildArgs {
        let global = platforms.iter().map(|(name, value)| ((*name).to_owned(), Some(value.clone()))).collect();
        BuildArgs { given, global, ..BuildArgs::default() }
    }

    /// The arguments at the start of a stage.
    pub fn for_stage(&self) -> BuildArgs {
        BuildArgs { allowed: BTreeMap::new(), ..self.clone() }
    }

    /// ARG before the first FROM.
    pub fn add_global(&mut self, name: &str, default: Option<String>) {
        self.add(name, default.clone());
        // A platform argument that is only declared keeps its value.
        if default.is_some() || !self.global.contains_key(name) {
            self.global.insert(name.into(), default);
        }
    }

    /// ARG in a stage.
    pub fn add(&mut self, name: &str, default: Option<String>) {
        self.allowed.insert(name.into(), default);
        self.referenced.insert(name.into());
    }

    /// Takes over what a finished stage has referenced.
    pub fn merge_referenced(&mut self, stage: &BuildArgs) {
        self.referenced.extend(stage.referenced.iter().cloned());
    }

    /// An argument as FROM sees it.
    pub fn global(&self, name: &str) -> Option<String> {
        self.value(name, &self.global)
    }

    /// An argument as the stage's steps see it.
    pub fn allowed(&self, name: &str) -> Option<String> {
        self.value(name, &self.allowed)
    }

    /// `NAME=value` of every argument that a RUN step gets and that the image's environment does not set.
    pub fn for_run(&self, environment: &[String]) -> Vec<String> {
        let set: BTreeSet<&str> = environment.iter().map(|e| e.split_once('=').map_or(e.as_str(), |(name, _)| name)).collect();
        let names: BTreeSet<&str> = self.allowed.keys().map(String::as_str).chain(TRANSPARENT).collect();
        names
            .into_iter()
            .filter(|name| !set.contains(name))
            .filter_map(|name| self.allowed(name).map(|value| format!("{name}={value}")))
            .collect()
    }

    /// The command as history and cache know it: `|2 a=1 b=2 /bin/sh -c …`.
    pub fn on_command(&self, run: &[String], command: &[String]) -> Vec<String> {
        if run.is_empty() {
            return command.to_vec();
        }
        let name = |arg: &str| arg.split_once('=').map_or_else(|| arg.to_owned(), |(name, _)| name.to_owned());
        let mut shown: Vec<String> =
            run.iter().filter(|arg| !TRANSPARENT.contains(&name(arg).as_str()) || self.allowed.contains_key(&name(arg))).cloned().collect();
        shown.sort();
        let mut out = vec![format!("|{}", shown.len())];
        out.append(&mut shown);
        out.extend_from_slice(command);
        out
    }

    /// The warning about given arguments that no ARG took, if there are any.
    pub fn unused_warning(&self) -> Option<String> {
        let unused: Vec<&str> = self
            .given
            .keys()
            .map(String::as_str)
            .filter(|name| !TRANSPARENT.contains(name) && !self.referenced.contains(*name) && !self.global.contains_key(*name))
            .collect();
        (!unused.is_empty()).then(|| format!("[Warning] One or more build-args [{}] were not consumed\n", unused.join(" ")))
    }

    fn value(&self, name: &str, scope: &BTreeMap<String, Option<String>>) -> Option<String> {
        let default = scope.get(name);
        if default.is_none() && !TRANSPARENT.contains(&name) {
            return None;
        }
        let given = self.given.get(name).cloned().flatten();
        given.or_else(|| default.cloned().flatten()).or_else(|| self.global.get(name).cloned().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(given: &[(&str, &str)]) -> BuildArgs {
        let given = given.iter().map(|(n, v)| ((*n).to_owned(), Some((*v).to_owned()))).collect();
        BuildArgs::new(given, &[("TARGETARCH", "amd64".into())])
    }

    #[test]
    fn an_argument_needs_its_arg() {
        let mut args = args(&[("a", "given"), ("b", "given")]);
        assert_eq!(args.allowed("a"), None);
        args.add("a", Some("default".into()));
        args.add("c", Some("default".into()));
        args.add("d", None);
        assert_eq!(args.allowed("a").as_deref(), Some("given"));
        assert_eq!(args.allowed("c").as_deref(), Some("default"));
        assert_eq!(args.allowed("d"), None);
        assert_eq!(args.unused_warning().unwrap(), "[Warning] One or more build-args [b] were not consumed\n");
    }

    #[test]
    fn global_arguments_reach_a_stage_by_name_only() {
        let mut file = args(&[]);
        file.add_global("v", Some("1".into()));
        let mut stage = file.for_stage();
        assert_eq!(stage.global("v").as_deref(), Some("1"));
        assert_eq!(stage.allowed("v"), None);
        stage.add("v", None);
        stage.add("TARGETARCH", None);
        assert_eq!(stage.allowed("v").as_deref(), Some("1"));
        assert_eq!(stage.allowed("TARGETARCH").as_deref(), Some("amd64"));
    }

    #[test]
    fn proxies_are_passed_but_not_shown() {
        let mut args = args(&[("http_proxy", "http://p"), ("x", "1")]);
        args.add("x", None);
        let run = args.for_run(&["PATH=/bin".into()]);
        assert_eq!(run, ["http_proxy=http://p", "x=1"]);
        assert_eq!(args.on_command(&run, &["sh".into()]), ["|1", "x=1", "sh"]);
        args.add("http_proxy", None);
        assert_eq!(args.on_command(&run, &["sh".into()])[0], "|2");
        assert!(args.for_run(&["x=2".into(), "http_proxy=".into()]).is_empty());
    }
}
