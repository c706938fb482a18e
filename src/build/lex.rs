//! From a Dockerfile's bytes to instruction lines: parser directives, comments, continuation lines,
//! here-documents, flags, JSON and shell forms. Knows which form an instruction's words have, not what they mean.

use super::expand::Expander;
use super::golang::quote;

/// The longest physical line, as the reference's scanner has it.
const LINE_MAX: usize = 65_535;

/// A Dockerfile's lines and what its directives said.
#[derive(Debug)]
pub struct Source {
    /// `\` or `` ` ``.
    pub escape: char,
    pub lines: Vec<Line>,
    /// Printed to the client before the build, each with its own newline.
    pub warnings: Vec<String>,
}

/// One instruction, its continuation lines joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// As written; compare with [`Line::is`].
    pub keyword: String,
    /// `--name=value`, quotes removed.
    pub flags: Vec<String>,
    pub args: Args,
    pub heredocs: Vec<Heredoc>,
    /// The joined text, for the step's headline and the history.
    pub original: String,
    /// Counted from 1.
    pub first: usize,
    pub last: usize,
}

/// An instruction's arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    pub words: Vec<String>,
    /// Written as a JSON array (for HEALTHCHECK: the part after its type).
    pub json: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    pub name: String,
    /// The lines with their newlines, tabs not yet removed.
    pub content: String,
    /// Variables are expanded (the name was not quoted).
    pub expand: bool,
    /// `<<-`: leading tabs are removed.
    pub chomp: bool,
}

/// A refusal with the line it is about (0: the file as a whole).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub line: usize,
    pub message: String,
}

impl Line {
    pub fn is(&self, keyword: &str) -> bool {
        self.keyword.eq_ignore_ascii_case(keyword)
    }
}

impl Heredoc {
    /// The content as a file gets it.
    pub fn text(&self) -> String {
        if !self.chomp {
            return self.content.clone();
        }
        self.content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}

/// Reads a whole Dockerfile.
pub fn read(bytes: &[u8]) -> Result<Source, Fault> {
    let text = String::from_utf8_lossy(bytes);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut reader = Reader { rest: text.split_inclusive('\n'), number: 0 };
    let mut directives = Directives { escape: '\\', seen: Vec::new(), open: true };
    let mut lines = Vec::new();
    let mut empty_continuations = Vec::new();

    while let Some(raw) = reader.next()? {
        let trimmed = raw.trim_start();
        directives.look_at(trimmed).map_err(|message| Fault { line: reader.number, message })?;
        if trimmed.starts_with('#') {
            continue;
        }
        let first = reader.number;
        let (mut joined, mut open) = without_continuation(without_newline(trimmed), directives.escape);
        if !open && joined.is_empty() {
            continue;
        }
        let mut empty_seen = false;
        while open {
            let Some(raw) = reader.next()? else { break };
            let raw = without_newline(raw);
            if raw.trim_start().starts_with('#') {
                continue;
            }
            if raw.trim_start().is_empty() {
                empty_seen = true;
                continue;
            }
            let (part, more) = without_continuation(raw, directives.escape);
            joined.push_str(&part);
            open = more;
        }
        if empty_seen {
            empty_continuations.push(format!("[WARNING]: Empty continuation line found in:\n    {joined}\n"));
        }
        let at = |message| Fault { line: first, message };
        let mut line = instruction(&joined, directives.escape).map_err(at)?;
        line.first = first;
        if takes_heredocs(&line, directives.escape) && joined.contains("<<") {
            line.heredocs = heredocs(&joined);
            for heredoc in &mut line.heredocs {
                reader.heredoc(heredoc).map_err(|e| Fault { line: first, message: e })?;
            }
        }
        line.last = reader.number;
        lines.push(line);
    }
    if lines.is_empty() {
        return Err(Fault { line: 0, message: "file with no instructions".into() });
    }
    if !empty_continuations.is_empty() {
        empty_continuations.push("[WARNING]: Empty continuation lines will become errors in a future release.\n".into());
    }
    Ok(Source { escape: directives.escape, lines, warnings: empty_continuations })
}

/// Physical lines, counted.
struct Reader<'a> {
    rest: std::str::SplitInclusive<'a, char>,
    number: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<&'a str>, Fault> {
        let Some(line) = self.rest.next() else { return Ok(None) };
        self.number += 1;
        if line.len() > LINE_MAX {
            let message = format!("dockerfile line greater than max allowed size of {LINE_MAX}");
            return Err(Fault { line: self.number, message });
        }
        Ok(Some(line))
    }

    /// Reads a here-document's lines up to its terminator.
    fn heredoc(&mut self, heredoc: &mut Heredoc) -> Result<(), String> {
        while let Some(raw) = self.next().map_err(|fault| fault.message)? {
            let end = without_newline(raw);
            if heredoc.name == if heredoc.chomp { end.trim_start_matches('\t') } else { end } {
                return Ok(());
            }
            heredoc.content.push_str(raw);
        }
        Err("unterminated heredoc".into())
    }
}

/// `# key=value` lines at the very top.
struct Directives {
    escape: char,
    seen: Vec<String>,
    open: bool,
}

impl Directives {
    fn look_at(&mut self, line: &str) -> Result<(), String> {
        if !self.open {
            return Ok(());
        }
        let pair = line.strip_prefix('#').and_then(|rest| rest.split_once('=')).map(|(k, v)| (k.trim().to_ascii_lowercase(), v.trim()));
        let Some((key, value)) = pair.filter(|(k, v)| ["escape", "syntax", "check"].contains(&k.as_str()) && !v.is_empty()) else {
            self.open = false;
            return Ok(());
        };
        if self.seen.contains(&key) {
            return Err(format!("only one {key} parser directive can be used"));
        }
        if key == "escape" {
            self.escape = match value {
                "\\" => '\\',
                "`" => '`',
                other => return Err(format!("invalid escape token '{other}' does not match ` or \\")),
            };
        }
        self.seen.push(key);
        Ok(())
    }
}

fn without_newline(line: &str) -> &str {
    let line = line.strip_suffix('\n').unwrap_or(line);
    line.strip_suffix('\r').unwrap_or(line)
}

/// The line without a trailing escape character, and whether there was one (the line goes on).
fn without_continuation(line: &str, escape: char) -> (String, bool) {
    match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        Some(part) => (part.to_owned(), true),
        None => (line.to_owned(), false),
    }
}

/// Splits a joined line into keyword, flags and arguments; ONBUILD's trigger is read by the same rules.
pub fn instruction(joined: &str, escape: char) -> Result<Line, String> {
    let text = joined.trim();
    let (keyword, rest) = text.split_once(is_blank).unwrap_or((text, ""));
    let (flags, rest) = flags(rest);
    let rest = rest.trim();
    let args = match keyword.to_ascii_uppercase().as_str() {
        "ENV" => pairs(rest, "ENV", escape)?,
        "LABEL" => pairs(rest, "LABEL", escape)?,
        "ARG" => Args { words: words(rest, escape), json: false },
        "ADD" | "COPY" | "VOLUME" => match json(rest)? {
            Some(words) => Args { words, json: true },
            None => Args { words: blank_separated(rest), json: false },
        },
        "EXPOSE" | "FROM" => Args { words: blank_separated(rest), json: false },
        "CMD" | "ENTRYPOINT" | "RUN" | "SHELL" => shell_or_json(rest)?,
        "HEALTHCHECK" => {
            let (kind, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            let mut args = shell_or_json(command.trim_start())?;
            if !kind.is_empty() {
                args.words.insert(0, kind.into());
            }
            args
        }
        "ONBUILD" if !rest.is_empty() => {
            let inner = instruction(rest, escape)?;
            let mut words = vec![inner.keyword];
            words.extend(inner.args.words);
            Args { words, json: inner.args.json }
        }
        _ => Args { words: if rest.is_empty() { Vec::new() } else { vec![rest.to_owned()] }, json: false },
    };
    Ok(Line { keyword: keyword.into(), flags, args, heredocs: Vec::new(), original: joined.into(), first: 0, last: 0 })
}

fn is_blank(c: char) -> bool {
    matches!(c, '\t' | '\x0b' | '\x0c' | '\r' | ' ')
}

/// Leading `--flag=value` words and what follows them; `--` alone ends them.
fn flags(line: &str) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = line.trim_start();
    while rest.starts_with("--") {
        let mut word = String::new();
        let mut quote = None;
        let mut escaped = false;
        let mut end = rest.len();
        for (at, c) in rest.char_indices() {
            match (escaped, quote, c) {
                (true, _, _) => {
                    word.push(c);
                    escaped = false;
                }
                (_, _, '\\') => escaped = true,
                (_, Some(q), _) if c == q => quote = None,
                (_, None, '\'' | '"') => quote = Some(c),
                (_, None, _) if c.is_whitespace() => {
                    end = at;
                    break;
                }
                _ => word.push(c),
            }
        }
        rest = rest.get(end..).unwrap_or_default().trim_start();
        if word == "--" {
            break;
        }
        flags.push(word);
    }
    (flags, rest)
}

fn blank_separated(rest: &str) -> Vec<String> {
    rest.split(is_blank).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

fn shell_or_json(rest: &str) -> Result<Args, String> {
    if rest.is_empty() {
        return Ok(Args::default());
    }
    Ok(match json(rest)? {
        Some(words) => Args { words, json: true },
        None => Args { words: vec![rest.to_owned()], json: false },
    })
}

/// A JSON array of strings; `None` when the text is no JSON array at all.
fn json(rest: &str) -> Result<Option<Vec<String>>, String> {
    if !rest.trim_start().starts_with('[') {
        return Ok(None);
    }
    let Ok(list) = serde_json::from_str::<Vec<serde_json::Value>>(rest) else { return Ok(None) };
    list.into_iter()
        .map(|value| match value {
            serde_json::Value::String(text) => Ok(text),
            _ => Err("when using JSON array syntax, arrays must be comprised of strings only".to_owned()),
        })
        .collect::<Result<_, _>>()
        .map(Some)
}

/// `name=value …`, or the old form `name value`; the words alternate name, value.
fn pairs(rest: &str, keyword: &str, escape: char) -> Result<Args, String> {
    let words = words(rest, escape);
    let Some(first) = words.first() else { return Ok(Args::default()) };
    if !first.contains('=') {
        let (name, value) = rest.split_once(is_blank).ok_or_else(|| format!("{keyword} must have two arguments"))?;
        return Ok(Args { words: vec![name.into(), value.trim_start_matches(is_blank).into()], json: false });
    }
    let mut out = Vec::with_capacity(words.len() * 2);
    for word in &words {
        let (name, value) = word
            .split_once('=')
            .ok_or_else(|| format!("Syntax error - can't find = in {}. Must be of the form: name=value", quote(word)))?;
        out.extend([name.to_owned(), value.to_owned()]);
    }
    Ok(Args { words: out, json: false })
}

/// Blank-separated words; quotes keep blanks and stay, as does the escape character: expansion removes them.
fn words(rest: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    let mut quote = None;
    let mut chars = rest.chars();
    while let Some(c) = chars.next() {
        if c == escape && quote != Some('\'') {
            // An escape character that ends the text is dropped.
            if let Some(escaped) = chars.next() {
                word.extend([c, escaped]);
            }
            continue;
        }
        match quote {
            Some(q) if c == q => quote = None,
            None if c == '\'' || c == '"' => {
                quote = Some(c);
                quoted = true;
            }
            None if c.is_whitespace() => {
                if quoted || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                quoted = false;
                continue;
            }
            _ => {}
        }
        word.push(c);
    }
    if quoted || !word.is_empty() {
        words.push(word);
    }
    words
}

fn takes_heredocs(line: &Line, escape: char) -> bool {
    let takes = |keyword: &str| ["ADD", "COPY", "RUN"].iter().any(|k| keyword.eq_ignore_ascii_case(k));
    let keyword = if line.is("ONBUILD") {
        let rest = line.original.trim().split_once(is_blank).map_or("", |(_, rest)| rest);
        instruction(rest, escape).map(|inner| inner.keyword).unwrap_or_default()
    } else {
        line.keyword.clone()
    };
    takes(&keyword) && !line.args.json
}

fn heredocs(joined: &str) -> Vec<Heredoc> {
    let unset = |_: &str| None;
    let raw = Expander { raw_quotes: true, raw_escapes: true, keep_unset: true, ..Expander::new('\\', &unset) };
    // A line that cannot be split here is the shell's business, not a here-document.
    raw.words(joined).unwrap_or_default().iter().filter_map(|word| heredoc(word)).collect()
}

/// Reads one word as `[fd]<<[-]NAME`.
pub fn heredoc(word: &str) -> Option<Heredoc> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (chomp, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let unset = |_: &str| None;
    let plain = Expander { keep_unset: true, ..Expander::new('\\', &unset) };
    let raw = Expander { raw_quotes: true, raw_escapes: true, keep_unset: true, ..Expander::new('\\', &unset) };
    let (unquoted, quoted) = (plain.words(rest).ok()?, raw.words(rest).ok()?);
    let [name] = unquoted.as_slice() else { return None };
    Some(Heredoc { name: name.clone(), content: String::new(), expand: quoted.first() == Some(name), chomp })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<Line> {
        read(text.as_bytes()).unwrap().lines
    }

    fn fault(text: &str) -> (usize, String) {
        let fault = read(text.as_bytes()).unwrap_err();
        (fault.line, fault.message)
    }

    #[test]
    fn continuation_comments_and_blank_lines() {
        let source = read(b"\xef\xbb\xbf# c\n\nFROM a\nRUN a \\\n  # inside\n  && b \\ \t\n\n  && c\nCMD x").unwrap();
        let lines = &source.lines;
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[1].original, "RUN a   && b   && c");
        assert_eq!((lines[1].first, lines[1].last), (4, 8));
        assert_eq!(source.warnings.len(), 2);
        assert_eq!(lines[2].args, Args { words: vec!["x".into()], json: false });
    }

    #[test]
    fn directives_count_only_at_the_top() {
        let source = read(b"# syntax=docker/dockerfile:1\n# escape = `\nFROM a\nRUN dir c:\\\nRUN a `\n b\n").unwrap();
        assert_eq!(source.escape, '`');
        assert_eq!(source.lines.len(), 3);
        assert_eq!(source.lines[2].original, "RUN a  b");
        assert_eq!(read(b"FROM a\n# escape=`\nRUN x").unwrap().escape, '\\');
        assert_eq!(read(b"# a comment\n# escape=`\nFROM a").unwrap().escape, '\\');
        assert_eq!(fault("# escape=`\n# escape=`\nFROM a"), (2, "only one escape parser directive can be used".into()));
        assert_eq!(fault("# escape=x\nFROM a"), (1, "invalid escape token 'x' does not match ` or \\".into()));
    }

    #[test]
    fn forms_of_arguments() {
        for (text, words, json) in [
            ("RUN echo  \"a b\"", vec!["echo  \"a b\""], false),
            ("RUN [\"a\", \"b c\"]", vec!["a", "b c"], true),
            ("RUN ['a']", vec!["['a']"], false),
            ("COPY a  b\tc", vec!["a", "b", "c"], false),
            ("COPY [\"a b\", \"c\"]", vec!["a b", "c"], true),
            ("ENV a=b c=\"d e\" f='g'", vec!["a", "b", "c", "\"d e\"", "f", "'g'"], false),
            ("ENV a  b c ", vec!["a", "b c"], false),
            ("ENV a=b\\ c d=", vec!["a", "b\\ c", "d", ""], false),
            ("LABEL \"a b\"=c", vec!["\"a b\"", "c"], false),
            ("ARG a b=c", vec!["a", "b=c"], false),
            ("EXPOSE 80 81/udp", vec!["80", "81/udp"], false),
            ("HEALTHCHECK CMD curl x", vec!["CMD", "curl x"], false),
            ("HEALTHCHECK CMD [\"a\"]", vec!["CMD", "a"], true),
            ("HEALTHCHECK NONE", vec!["NONE"], false),
            ("ONBUILD RUN a b", vec!["RUN", "a b"], false),
            ("WORKDIR /a b", vec!["/a b"], false),
            ("CMD []", vec![], true),
            ("CMD", vec![], false),
            ("FOO bar", vec!["bar"], false),
        ] {
            let line = instruction(text, '\\').unwrap();
            assert_eq!(line.args.words, words, "{text}");
            assert_eq!(line.args.json, json, "{text}");
        }
    }

    #[test]
    fn flags_come_before_arguments() {
        let line = instruction("COPY --from=a --chown=\"1:2\" -- --x y", '\\').unwrap();
        assert_eq!(line.flags, ["--from=a", "--chown=1:2"]);
        assert_eq!(line.args.words, ["--x", "y"]);
        assert_eq!(instruction("RUN --mount=type=cache,target=/a\\ b go", '\\').unwrap().flags, ["--mount=type=cache,target=/a b"]);
        assert_eq!(instruction("RUN -x --y", '\\').unwrap().flags.len(), 0);
    }

    #[test]
    fn heredocs_are_collected() {
        let text = "FROM a\nRUN <<EOF\necho $x\nEOF\nCOPY <<-'A' <<B /d/\n\ttabbed\n\tA\nb\nB\nRUN cat <<< here\n";
        let lines = lines(text);
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[1].heredocs[0].content, "echo $x\n");
        assert!(lines[1].heredocs[0].expand);
        let copy = &lines[2].heredocs;
        assert_eq!((copy[0].name.as_str(), copy[0].expand, copy[0].text().as_str()), ("A", false, "tabbed\n"));
        assert_eq!(copy[1].content, "b\n");
        assert_eq!(fault("FROM a\nRUN <<EOF\nx\n"), (2, "unterminated heredoc".into()));
    }

    #[test]
    fn refusals() {
        for (text, line, message) in [
            ("", 0, "file with no instructions"),
            ("# only\n\n", 0, "file with no instructions"),
            ("FROM a\nENV a", 2, "ENV must have two arguments"),
            ("FROM a\nLABEL a=b c", 2, "Syntax error - can't find = in \"c\". Must be of the form: name=value"),
            ("FROM a\nRUN [\"a\", 1]", 2, "when using JSON array syntax, arrays must be comprised of strings only"),
        ] {
            assert_eq!(fault(text), (line, message.into()));
        }
        assert_eq!(fault(&format!("FROM a\nRUN {}", "x".repeat(70_000))).0, 2);
    }
}
