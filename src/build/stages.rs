//! Which stages a build needs and what each stands on: names, numbers, `--target`, and the skipping of the rest.

use super::args::BuildArgs;
use super::dockerfile::{Dockerfile, Instruction, Stage};
use super::expand::Expander;
use crate::error::{Error, Result};
use std::collections::BTreeSet;

/// Where files or a base come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An earlier stage.
    Stage(usize),
    /// An image by name.
    Image(String),
    /// `FROM scratch`.
    Scratch,
}

/// A stage that will be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Its place in the Dockerfile.
    pub index: usize,
    pub base: Origin,
    /// `--platform` with its variables expanded; empty when not given.
    pub platform: String,
}

/// The stages to build, in the Dockerfile's order; the last one is the result.
pub fn plan(file: &Dockerfile, args: &BuildArgs, target: &str) -> Result<Vec<Planned>> {
    let mut names = BTreeSet::new();
    for stage in file.stages.iter().filter(|stage| !stage.name.is_empty()) {
        if !names.insert(stage.name.as_str()) {
            return Err(Error::invalid(format!("{} stage name already used", stage.name)));
        }
    }
    let last = match target {
        "" => file.stages.len().saturating_sub(1),
        target => find_target(&file.stages, target)?,
    };
    let mut all = Vec::new();
    for (index, stage) in file.stages.iter().enumerate().take(last + 1) {
        all.push(Planned { index, base: base(file, index, stage, args)?, platform: expand(file.escape, &stage.platform, args)? });
    }
    let mut needed = BTreeSet::from([last]);
    let mut open = vec![last];
    while let Some(index) = open.pop() {
        let stands_on = all.get(index).map(|planned| planned.base.clone());
        let sources = file.stages.get(index).map(|stage| sources(&file.stages, index, stage)).transpose()?.unwrap_or_default();
        for origin in stands_on.into_iter().chain(sources) {
            if let Origin::Stage(other) = origin
                && needed.insert(other)
            {
                open.push(other);
            }
        }
    }
    Ok(all.into_iter().filter(|planned| needed.contains(&planned.index)).collect())
}

/// What `COPY --from=` or a mount's `from=` means in stage `current`.
pub fn from_flag(stages: &[Stage], current: usize, name: &str) -> Result<Origin> {
    let lower = name.to_lowercase();
    if let Some(index) = stages.iter().take(current).position(|stage| stage.name == lower) {
        return Ok(Origin::Stage(index));
    }
    let refuse = |why| Err(Error::invalid(format!("invalid from flag value {name}: {why}")));
    match name.parse::<i64>().map(usize::try_from) {
        Ok(Ok(index)) if index < current => Ok(Origin::Stage(index)),
        Ok(Ok(index)) if index == current => refuse("refers to current build stage"),
        Ok(_) => refuse("index out of bounds"),
        Err(_) => Ok(Origin::Image(name.into())),
    }
}

fn find_target(stages: &[Stage], target: &str) -> Result<usize> {
    let by_name = stages.iter().position(|stage| stage.name.eq_ignore_ascii_case(target));
    let by_number = || target.parse::<usize>().ok().filter(|index| *index < stages.len());
    by_name.or_else(by_number).ok_or_else(|| Error::invalid(format!("target stage \"{target}\" could not be found")))
}

fn base(file: &Dockerfile, index: usize, stage: &Stage, args: &BuildArgs) -> Result<Origin> {
    let name = expand(file.escape, &stage.base, args)?;
    if name.is_empty() {
        return Err(Error::invalid(format!("base name ({}) should not be blank", stage.base)));
    }
    let lower = name.to_lowercase();
    Ok(match file.stages.iter().take(index).position(|earlier| earlier.name == lower) {
        Some(earlier) => Origin::Stage(earlier),
        None if name == "scratch" => Origin::Scratch,
        None => Origin::Image(name),
    })
}

fn expand(escape: char, text: &str, args: &BuildArgs) -> Result<String> {
    Expander::new(escape, &|name| args.global(name)).word(text).map_err(Error::invalid)
}

/// Everything that a stage's steps take files from.
fn sources(stages: &[Stage], index: usize, stage: &Stage) -> Result<Vec<Origin>> {
    let mut origins = Vec::new();
    for step in &stage.steps {
        match &step.instruction {
            Instruction::Copy(copy) if !copy.from.is_empty() => origins.push(from_flag(stages, index, &copy.from)?),
            Instruction::Run(run) => {
                for mount in run.mounts.iter().filter(|mount| !mount.from.is_empty()) {
                    origins.push(from_flag(stages, index, &mount.from)?);
                }
            }
            _ => {}
        }
    }
    Ok(origins)
}

#[cfg(test)]
mod tests {
    use super::super::dockerfile::parse;
    use super::*;
    use std::collections::BTreeMap;

    fn planned(text: &str, target: &str) -> Result<Vec<(usize, Origin)>> {
        let file = parse(text.as_bytes(), "Dockerfile").unwrap();
        let mut args = BuildArgs::new(BTreeMap::from([("V".into(), Some("9".into()))]), &[("TARGETARCH", "arm64".into())]);
        for step in &file.global_args {
            if let Instruction::Arg(pairs) = &step.instruction {
                pairs.iter().for_each(|(name, value)| args.add_global(name, value.clone()));
            }
        }
        Ok(plan(&file, &args, target)?.into_iter().map(|p| (p.index, p.base)).collect())
    }

    #[test]
    fn unused_stages_are_skipped() {
        let text = "FROM a AS one\nFROM b AS two\nFROM one AS three\nRUN --mount=from=0,target=/x y\nFROM scratch\nCOPY --from=three / /";
        let all = planned(text, "").unwrap();
        assert_eq!(all, [(0, Origin::Image("a".into())), (2, Origin::Stage(0)), (3, Origin::Scratch)]);
        assert_eq!(planned(text, "TWO").unwrap(), [(1, Origin::Image("b".into()))]);
        assert_eq!(planned(text, "1").unwrap(), [(1, Origin::Image("b".into()))]);
        assert_eq!(planned(text, "four").unwrap_err().message, "target stage \"four\" could not be found");
    }

    #[test]
    fn bases_take_global_arguments() {
        assert_eq!(planned("ARG V=1\nFROM a:${V}-$TARGETARCH", "").unwrap(), [(0, Origin::Image("a:9-arm64".into()))]);
        assert_eq!(planned("FROM $NONE", "").unwrap_err().message, "base name ($NONE) should not be blank");
    }

    #[test]
    fn from_flags_look_back_only() {
        for (from, message) in [
            ("1", "invalid from flag value 1: refers to current build stage"),
            ("2", "invalid from flag value 2: index out of bounds"),
            ("-1", "invalid from flag value -1: index out of bounds"),
        ] {
            let text = format!("FROM a\nFROM b\nCOPY --from={from} / /\n");
            assert_eq!(planned(&text, "").unwrap_err().message, message);
        }
        assert!(planned("FROM a AS x\nFROM b AS x", "").unwrap_err().message.contains("x stage name already used"));
    }
}
