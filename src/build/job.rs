//! The build job: a Dockerfile's stages and steps carried out one by one, told in the classic builder's words.

use super::args::BuildArgs;
use super::dockerfile::{self, Dockerfile, Instruction, Step};
use super::image::Image;
use super::stages::{self, Origin, Planned};
use super::steps::{State, Work as StepWork};
use super::{context, ignore};
use crate::container::config::HostConfig;
use crate::error::{Error, Result};
use crate::image::config::Platform;
use crate::image::place::Place;
use crate::image::reference::Reference;
use crate::image::work::{self, Work};
use crate::registry::auth::Credentials;
use crate::registry::client::Login;
use crate::registry::endpoint::Settings;
use crate::registry::pull::{self, Pull};
use crate::worker::{Context, Job};
use serde_json::json;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

/// What `POST /build` asks for.
#[derive(Clone)]
pub struct Params {
    pub tags: Vec<Reference>,
    /// Path in the context.
    pub dockerfile: String,
    /// "" = the body is the context; else the URL of a Dockerfile or an archive.
    pub remote: String,
    pub quiet: bool,
    pub no_cache: bool,
    /// Ask the registry for newer base images.
    pub pull: bool,
    pub remove: bool,
    pub force_remove: bool,
    pub build_args: BTreeMap<String, Option<String>>,
    pub labels: BTreeMap<String, String>,
    pub target: String,
    pub platform: Option<Platform>,
    /// Limits, network and hosts of RUN's containers.
    pub host: HostConfig,
    /// X-Registry-Config: credentials by registry.
    pub credentials: BTreeMap<String, Credentials>,
    pub settings: Settings,
    pub place: Place,
}

/// The job.
pub fn job(params: Params) -> Job {
    Job::new("build", move |context| {
        let work = Work::begin(&params.place, context.number)?;
        Build { context, work: Some(work), sources: None, done: Vec::new(), step: 1, total: 0, params }.run()
    })
}

/// A build under way.
pub(super) struct Build<'c> {
    pub context: &'c mut Context,
    pub params: Params,
    pub work: Option<Work>,
    /// The context's directory.
    pub sources: Option<OwnedFd>,
    /// Finished stages by their place in the Dockerfile.
    pub done: Vec<Option<Image>>,
    step: usize,
    total: usize,
}

impl Build<'_> {
    fn run(mut self) -> Result<()> {
        let (file, text) = self.read()?;
        let mut file = self.with_labels(file);
        let mut args = BuildArgs::new(self.params.build_args.clone(), &platform_args(self.params.platform.as_ref()));
        self.declare(&file, &mut args)?;
        let plan = stages::plan(&file, &args, &self.params.target)?;
        let steps: usize = plan.iter().filter_map(|p| file.stages.get(p.index)).map(|s| s.steps.len() + 1).sum();
        self.total = file.global_args.len() + steps;
        self.done = vec![None; file.stages.len()];
        drop(text);
        for warning in std::mem::take(&mut file.warnings) {
            self.say_error(&warning)?;
        }
        for step in &file.global_args {
            self.headline(&step.code)?;
        }
        for planned in &plan {
            self.stage(&file, planned, &mut args)?;
        }
        let last = plan.last().and_then(|p| self.done.get(p.index).cloned().flatten());
        let image = last.and_then(|image| image.id).ok_or_else(|| Error::system("No image was generated. Is your Dockerfile empty?"))?;
        if let Some(warning) = args.unused_warning() {
            self.say(&warning)?;
        }
        if self.params.quiet {
            self.params.quiet = false;
            self.say(&format!("{image}\n"))?;
            self.params.quiet = true;
        }
        self.say(&format!("Successfully built {}\n", image.short()))?;
        for tag in self.params.tags.clone() {
            work::tag(self.context, &tag, image, true)?;
            self.say(&format!("Successfully tagged {}\n", tag.familiar()))?;
        }
        Ok(())
    }

    /// The context and its Dockerfile.
    fn read(&mut self) -> Result<(Dockerfile, Vec<u8>)> {
        let Some(work) = &mut self.work else { return Err(Error::system("no place in staging")) };
        let (dir, text) = context::read(self.context, work, &self.params)?;
        let name = ignore::clean(&self.params.dockerfile);
        let file = dockerfile::parse(&text, &name)?;
        self.sources = Some(dir);
        Ok((file, text))
    }

    /// The request's labels are LABEL steps of the last stage.
    fn with_labels(&self, mut file: Dockerfile) -> Dockerfile {
        let index = match self.params.target.as_str() {
            "" => file.stages.len().checked_sub(1),
            target => file.stages.iter().position(|s| s.name.eq_ignore_ascii_case(target)).or_else(|| target.parse().ok()),
        };
        if let Some(stage) = index.and_then(|index| file.stages.get_mut(index)) {
            for (name, value) in &self.params.labels {
                let instruction = Instruction::Label { pairs: vec![(name.clone(), value.clone())], literal: true };
                stage.steps.push(Step { code: format!("LABEL {name}={value}"), line: 0, instruction });
            }
        }
        file
    }

    fn declare(&self, file: &Dockerfile, args: &mut BuildArgs) -> Result<()> {
        for step in &file.global_args {
            let Instruction::Arg(pairs) = &step.instruction else { continue };
            for (name, default) in pairs {
                let lookup = |name: &str| args.global(name);
                let expander = super::expand::Expander::new(file.escape, &lookup);
                let default = default.as_ref().map(|text| expander.word(text)).transpose().map_err(Error::invalid)?;
                args.add_global(name, default);
            }
        }
        Ok(())
    }

    fn stage(&mut self, file: &Dockerfile, planned: &Planned, args: &mut BuildArgs) -> Result<()> {
        let Some(stage) = file.stages.get(planned.index) else { return Ok(()) };
        self.headline(&stage.code)?;
        let mut image = match &planned.base {
            Origin::Scratch => Image::scratch(self.params.platform.clone()),
            Origin::Stage(index) => self.done.get(*index).cloned().flatten().ok_or_else(|| Error::system("a stage was not built"))?,
            Origin::Image(name) => {
                let platform =
                    if planned.platform.is_empty() { self.params.platform.clone() } else { Some(Platform::parse(&planned.platform)?) };
                self.base(name, platform)?
            }
        };
        let mut state = State::begin(image.document.config.as_ref(), args.for_stage(), file.escape);
        state.config.image = image.id.map(|id| id.to_string()).unwrap_or_default();
        let triggers = state.config.on_build.take().unwrap_or_default();
        self.say_id(&image)?;
        if !triggers.is_empty() {
            let plural = if triggers.len() > 1 { "s" } else { "" };
            self.say(&format!("# Executing {} build trigger{plural}\n", triggers.len()))?;
            for trigger in &triggers {
                let step = dockerfile::parse_trigger(trigger)?;
                image = self.one(file, planned.index, &step, &mut state, image)?;
                self.say_id(&image)?;
            }
        }
        for step in &stage.steps {
            self.headline(&step.code)?;
            image = self.one(file, planned.index, step, &mut state, image)?;
            self.say_id(&image)?;
        }
        if stage.steps.is_empty() && image.id.is_none() {
            return Err(Error::invalid("No image was generated. Is your Dockerfile empty?"));
        }
        args.merge_referenced(&state.args);
        if let Some(id) = image.id.filter(|_| !self.params.quiet) {
            self.start()?;
            self.context.line(&json!({"aux": {"ID": id}}))?;
        }
        if let Some(slot) = self.done.get_mut(planned.index) {
            *slot = Some(image);
        }
        Ok(())
    }

    fn one(&mut self, file: &Dockerfile, index: usize, step: &Step, state: &mut State, image: Image) -> Result<Image> {
        let plan = state.plan(step)?;
        if let Some(note) = &plan.note {
            self.say(note)?;
        }
        let image = match plan.work {
            StepWork::Configure => self.configure(image, state, &plan.command)?,
            StepWork::Workdir(path) => self.workdir(image, state, &plan.command, &path)?,
            StepWork::Run(run) => self.run_step(file, index, image, state, &plan.command, &run)?,
            StepWork::Copy { copy, add } => self.copy_step(file, index, image, state, &copy, add)?,
        };
        state.config.image = image.id.map(|id| id.to_string()).unwrap_or_default();
        Ok(image)
    }

    /// A base image: the local one, or the registry's.
    pub fn base(&mut self, name: &str, platform: Option<Platform>) -> Result<Image> {
        if !self.params.pull {
            match Image::local(self.context, &self.params.place, name) {
                Ok(image) if platform.as_ref().is_none_or(|wanted| wanted.accepts(&image.document.platform())) => return Ok(image),
                Ok(_) => {}
                Err(e) if e.kind == crate::error::Kind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        let reference = Reference::parse(name)?.or_latest();
        let domain = reference.domain();
        let keys = [domain, "https://index.docker.io/v1/"];
        let known = keys.iter().take(if domain == "docker.io" { 2 } else { 1 }).find_map(|key| self.params.credentials.get(*key));
        let login = Login { credentials: known.cloned().unwrap_or_default(), meta: Vec::new() };
        let (settings, place) = (self.params.settings.clone(), self.params.place.clone());
        pull::run(&Pull { reference: reference.clone(), platform, login, settings, place }, self.context, &mut self.work)?;
        Image::local(self.context, &self.params.place, &reference.to_string())
    }

    fn headline(&mut self, code: &str) -> Result<()> {
        let (step, total) = (self.step, self.total);
        self.step += 1;
        self.say(&format!("Step {step}/{total} : {code}"))?;
        self.say("\n")
    }

    fn say_id(&mut self, image: &Image) -> Result<()> {
        self.say(&format!(" ---> {}\n", image.id.map(|id| id.short()).unwrap_or_default()))
    }

    fn start(&mut self) -> Result<()> {
        if self.context.started() { Ok(()) } else { self.context.start(200, "application/json") }
    }

    /// A piece of the build's text.
    pub fn say(&mut self, text: &str) -> Result<()> {
        if self.params.quiet {
            return Ok(());
        }
        self.start()?;
        self.context.line(&json!({"stream": text}))
    }

    /// As [`Build::say`], in the colour of stderr.
    pub fn say_error(&mut self, text: &str) -> Result<()> {
        self.say(&format!("\u{1b}[91m{text}\u{1b}[0m"))
    }

    pub fn work(&mut self) -> Result<&mut Work> {
        self.work.as_mut().ok_or_else(|| Error::system("no place in staging"))
    }

    pub fn sources(&self) -> Result<OwnedFd> {
        let dir = self.sources.as_ref().ok_or_else(|| Error::invalid("missing build context"))?;
        dir.as_fd().try_clone_to_owned().map_err(|e| Error::io("open the build context", &e))
    }
}

/// The platform arguments that need no ARG before FROM.
fn platform_args(wanted: Option<&Platform>) -> Vec<(&'static str, String)> {
    let host = Platform::host();
    let target = wanted.cloned().unwrap_or_else(Platform::host);
    vec![
        ("BUILDARCH", host.architecture.clone()),
        ("BUILDOS", host.os.clone()),
        ("BUILDPLATFORM", host.to_string()),
        ("BUILDVARIANT", host.variant),
        ("TARGETARCH", target.architecture.clone()),
        ("TARGETOS", target.os.clone()),
        ("TARGETPLATFORM", target.to_string()),
        ("TARGETVARIANT", target.variant),
    ]
}
