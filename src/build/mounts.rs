//! `RUN --mount=…`: its comma-separated fields, read twice: for mistakes with the Dockerfile, and with variables
//! expanded when the step runs.

use super::dockerfile::suggestion;
use super::golang::quote;

/// One mount of a RUN step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    pub kind: Kind,
    /// A stage or image; empty = the context (bind) or an empty directory (cache).
    pub from: String,
    pub source: String,
    pub target: String,
    pub read_only: bool,
    /// cache, secret and ssh: what they are known under; defaults to the target.
    pub id: String,
    /// cache: "", "shared", "private", "locked".
    pub sharing: String,
    pub required: bool,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// tmpfs: bytes; 0 = no limit of its own.
    pub size: u64,
    /// The fields as written, for [`Mount::expanded`].
    text: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    #[default]
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Bind => "bind",
            Kind::Cache => "cache",
            Kind::Tmpfs => "tmpfs",
            Kind::Secret => "secret",
            Kind::Ssh => "ssh",
        }
    }
}

/// Reads the fields as far as they hold no variables.
pub fn check(text: &str) -> Result<Mount, String> {
    let from = fields(text).into_iter().find_map(|field| field.strip_prefix("from=").map(str::to_owned));
    if from.is_some_and(|from| from.contains('$')) {
        return Err("'from' doesn't support variable expansion, define alias stage instead".into());
    }
    if text.contains('$') {
        return Ok(Mount { text: text.into(), ..Mount::default() });
    }
    read(text, &|value| Ok(value.to_owned()))
}

impl Mount {
    /// The mount with the variables in its values expanded.
    pub fn expanded(&self, expand: &dyn Fn(&str) -> Result<String, String>) -> Result<Mount, String> {
        read(&self.text, expand)
    }
}

fn read(text: &str, expand: &dyn Fn(&str) -> Result<String, String>) -> Result<Mount, String> {
    let mut mount = Mount { text: text.into(), ..Mount::default() };
    let mut read_only = None;
    for field in fields(text) {
        let (key, value) = field.split_once('=').map_or((field.as_str(), None), |(k, v)| (k, Some(v)));
        let key = key.to_lowercase();
        let of_secret = || match mount.kind {
            Kind::Secret | Kind::Ssh => Ok(true),
            other => Err(format!("unexpected key '{key}' for mount type '{}'", other.name())),
        };
        let Some(value) = value else {
            match key.as_str() {
                "readonly" | "ro" => read_only = Some(true),
                "readwrite" | "rw" => read_only = Some(false),
                "required" => mount.required = of_secret()?,
                _ => return Err(format!("invalid field '{field}' must be a key=value pair")),
            }
            continue;
        };
        let value = expand(value)?;
        let truth = || match value.as_str() {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
            _ => Err(format!("invalid value for {key}: {value}")),
        };
        let number = |radix| u32::from_str_radix(&value, radix).map_err(|_| format!("invalid value {value} for {key}"));
        match key.as_str() {
            "type" => mount.kind = kind(&value)?,
            "from" => mount.from = value,
            "source" | "src" => mount.source = value,
            "target" | "dst" | "destination" => mount.target = value,
            "readonly" | "ro" => read_only = Some(truth()?),
            "readwrite" | "rw" => read_only = Some(!truth()?),
            "required" => {
                of_secret()?;
                mount.required = truth()?;
            }
            "size" if mount.kind == Kind::Tmpfs => mount.size = bytes(&value).ok_or_else(|| format!("invalid value for {key}: {value}"))?,
            "size" => return Err(format!("unexpected key '{key}' for mount type '{}'", mount.kind.name())),
            "id" => mount.id = value,
            "sharing" => {
                let mode = value.to_lowercase();
                if !["shared", "private", "locked"].contains(&mode.as_str()) {
                    let hint = suggestion(&value, &["shared", "private", "locked"]);
                    return Err(format!("unsupported sharing value {}{hint}", quote(&value)));
                }
                mount.sharing = mode;
            }
            "mode" => mount.mode = Some(number(8)?),
            "uid" => mount.uid = Some(number(10)?),
            "gid" => mount.gid = Some(number(10)?),
            _ => {
                let known = ["type", "from", "source", "target", "readonly", "id", "sharing", "required", "mode", "uid", "gid", "size"];
                return Err(format!("unexpected key '{key}' in '{field}'{}", suggestion(&key, &known)));
            }
        }
    }
    mount.read_only = read_only.unwrap_or(!matches!(mount.kind, Kind::Cache | Kind::Tmpfs));
    consistent(mount)
}

fn consistent(mount: Mount) -> Result<Mount, String> {
    let name = mount.kind.name();
    if matches!(mount.kind, Kind::Bind | Kind::Tmpfs) {
        for (key, set) in [("mode", mount.mode.is_some()), ("uid", mount.uid.is_some()), ("gid", mount.gid.is_some())] {
            if set {
                return Err(format!("{key} not allowed for \"{name}\" type mounts"));
            }
        }
    }
    if mount.kind == Kind::Secret {
        if !mount.from.is_empty() {
            return Err("secret mount should not have a from".into());
        }
        if mount.source.is_empty() && mount.target.is_empty() && mount.id.is_empty() {
            return Err("invalid secret mount. one of source, target required".into());
        }
        if !mount.source.is_empty() && !mount.id.is_empty() {
            return Err("both source and id can't be set".into());
        }
    }
    if !mount.sharing.is_empty() && mount.kind != Kind::Cache {
        return Err(format!("invalid cache sharing set for {name} mount"));
    }
    Ok(mount)
}

fn kind(value: &str) -> Result<Kind, String> {
    match value.to_lowercase().as_str() {
        "bind" => Ok(Kind::Bind),
        "cache" => Ok(Kind::Cache),
        "tmpfs" => Ok(Kind::Tmpfs),
        "secret" => Ok(Kind::Secret),
        "ssh" => Ok(Kind::Ssh),
        _ => {
            let hint = suggestion(value, &["bind", "cache", "tmpfs", "secret", "ssh"]);
            Err(format!("unsupported mount type {}{hint}", quote(value)))
        }
    }
}

/// Splits at commas; a field in double quotes may hold some (one CSV record).
fn fields(text: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => out.push(String::new()),
            c => {
                if let Some(field) = out.last_mut() {
                    field.push(c);
                }
            }
        }
    }
    out
}

/// "10m" in bytes, units of 1024.
fn bytes(text: &str) -> Option<u64> {
    let text = text.to_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_defaults() {
        let cache = check("type=cache,target=/c,sharing=locked,uid=1,mode=0755").unwrap();
        assert_eq!((cache.kind, cache.read_only, cache.mode, cache.sharing.as_str()), (Kind::Cache, false, Some(0o755), "locked"));
        let bind = check("src=a,\"dst=/b,c\",from=stage").unwrap();
        assert_eq!((bind.kind, bind.read_only, bind.target.as_str(), bind.from.as_str()), (Kind::Bind, true, "/b,c", "stage"));
        assert!(!check("target=/b,rw").unwrap().read_only);
        assert_eq!(check("type=tmpfs,target=/t,size=2m").unwrap().size, 2 << 20);
        assert!(check("type=secret,id=x,required").unwrap().required);
    }

    #[test]
    fn variables_wait_for_the_step() {
        let mount = check("type=cache,target=$D/x").unwrap();
        let expand = |text: &str| Ok(text.replace("$D", "/d"));
        assert_eq!(mount.expanded(&expand).unwrap().target, "/d/x");
    }

    #[test]
    fn refusals() {
        for (text, message) in [
            ("type=bnd", "unsupported mount type \"bnd\" (did you mean bind?)"),
            ("from=$x,target=/a", "'from' doesn't support variable expansion, define alias stage instead"),
            ("target=/a,foo", "invalid field 'foo' must be a key=value pair"),
            ("target=/a,zzzzzz=1", "unexpected key 'zzzzzz' in 'zzzzzz=1'"),
            ("target=/a,mode=1", "mode not allowed for \"bind\" type mounts"),
            ("type=cache,target=/a,mode=9", "invalid value 9 for mode"),
            ("target=/a,required", "unexpected key 'required' for mount type 'bind'"),
            ("target=/a,ro=maybe", "invalid value for ro: maybe"),
            ("type=secret", "invalid secret mount. one of source, target required"),
            ("type=secret,id=a,source=b", "both source and id can't be set"),
            ("target=/a,sharing=shared", "invalid cache sharing set for bind mount"),
            ("target=/a,size=1", "unexpected key 'size' for mount type 'bind'"),
        ] {
            assert_eq!(check(text).unwrap_err(), message);
        }
    }
}
