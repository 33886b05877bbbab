//! What the user types: messages of one or several lines, and commands.

use crate::text_file;
use anyhow::{Context, Result};
use rustyline::{
    Completer, Editor, Helper, Highlighter, Hinter,
    error::ReadlineError,
    history::MemHistory,
    validate::{ValidationContext, ValidationResult, Validator},
};
use std::{
    io::{self, BufRead, IsTerminal},
    path::PathBuf,
};

/// What was typed.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A message to the model.
    Say(String),
    /// A command to the program.
    Command(Command),
    /// A message whose line of this number is no UTF-8.
    Unreadable(usize),
}

/// A line that begins with `/`.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    Help,
    Reset,
    System(Option<String>),
    Save(Option<PathBuf>),
    Stats,
    Quit,
    Unknown(String),
}

/// Where lines come from.
pub enum Input {
    /// Edited, with the lines before at the arrow keys.
    Terminal(Box<Editor<MultiLine, MemHistory>>),
    /// A pipe or a file, of which so many lines have been read.
    Piped(usize),
}

impl Input {
    /// Standard input.
    pub fn new() -> Result<Self> {
        if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            return Ok(Self::Piped(0));
        }
        let config = rustyline::Config::builder().auto_add_history(true).build();
        let mut editor = Editor::with_history(config, MemHistory::new()).context("cannot edit lines")?;
        editor.set_helper(Some(MultiLine));
        Ok(Self::Terminal(Box::new(editor)))
    }

    /// Whether a person types.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// The next message or command; `None` at the end.
    pub fn next(&mut self) -> Result<Option<Line>> {
        while let Some(typed) = self.read()? {
            let line = match typed {
                Typed::Text(typed) => parse(&typed),
                Typed::Unreadable(line) => Some(Line::Unreadable(line)),
            };
            if line.is_some() {
                return Ok(line);
            }
        }
        Ok(None)
    }

    fn read(&mut self) -> Result<Option<Typed>> {
        match self {
            Self::Terminal(editor) => match editor.readline("> ") {
                Ok(typed) => Ok(Some(Typed::Text(typed))),
                Err(ReadlineError::Interrupted) => {
                    eprintln!("(Ctrl-D or /quit leaves)");
                    Ok(Some(Typed::Text(String::new())))
                }
                Err(ReadlineError::Eof) => Ok(None),
                Err(error) => Err(error).context("standard input"),
            },
            Self::Piped(lines) => read_piped(&mut io::stdin().lock(), lines),
        }
    }
}

/// A message as it was typed.
#[derive(Debug, PartialEq, Eq)]
enum Typed {
    Text(String),
    /// The number of its line that is no UTF-8.
    Unreadable(usize),
}

/// The next message of a pipe, of one or several lines; `None` at the end. `lines` counts those read.
fn read_piped(input: &mut impl BufRead, lines: &mut usize) -> Result<Option<Typed>> {
    let mut typed = String::new();
    loop {
        let mut line = Vec::new();
        if input.read_until(b'\n', &mut line).context("standard input")? == 0 {
            return Ok((!typed.is_empty()).then_some(Typed::Text(typed)));
        }
        *lines += 1;
        let line = if *lines == 1 { text_file::without_mark(&line) } else { &line };
        match std::str::from_utf8(line) {
            Ok(line) => typed.push_str(line),
            Err(_) => return Ok(Some(Typed::Unreadable(*lines))),
        }
        if is_whole(typed.trim_end_matches(['\r', '\n'])) {
            return Ok(Some(Typed::Text(typed)));
        }
    }
}

/// Reads on where a message is not whole yet.
#[derive(Completer, Helper, Highlighter, Hinter)]
pub struct MultiLine;

impl Validator for MultiLine {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let whole = is_whole(context.input());
        Ok(if whole { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

const QUOTES: &str = "\"\"\"";

fn is_whole(typed: &str) -> bool {
    typed.matches(QUOTES).count().is_multiple_of(2) && !typed.ends_with('\\')
}

/// `None` for a blank line.
fn parse(typed: &str) -> Option<Line> {
    let typed = typed.trim();
    if let Some(command) = typed.strip_prefix('/') {
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = Some(rest.trim()).filter(|rest| !rest.is_empty());
        return Some(Line::Command(match name {
            "help" | "?" => Command::Help,
            "reset" => Command::Reset,
            "system" => Command::System(rest.map(said)),
            "save" => Command::Save(rest.map(PathBuf::from)),
            "stats" => Command::Stats,
            "quit" | "exit" | "bye" => Command::Quit,
            name => Command::Unknown(format!("/{name}")),
        }));
    }
    Some(said(typed)).filter(|text| !text.is_empty()).map(Line::Say)
}

/// Without the marks that hold several lines together.
fn said(typed: &str) -> String {
    let text = typed.replace("\\\r\n", "\n").replace("\\\n", "\n");
    let quoted = text.strip_prefix(QUOTES).map(|rest| rest.strip_suffix(QUOTES).unwrap_or(rest));
    quoted.unwrap_or(&text).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(text: &str) -> Option<Line> {
        Some(Line::Say(text.to_owned()))
    }

    #[test]
    fn messages_of_several_lines_are_held_together_by_their_marks() {
        assert!(is_whole("one") && is_whole("") && is_whole("\"\"\"one\ntwo\"\"\""));
        assert!(!is_whole("one \\") && !is_whole("\"\"\"one") && !is_whole("one \\\ntwo \\"));
        assert_eq!(parse(" one \n"), say("one"));
        assert_eq!(parse("one\\\ntwo"), say("one\ntwo"));
        assert_eq!(parse("\"\"\"one\n\ntwo\n\"\"\"\n"), say("one\n\ntwo"));
        assert_eq!(parse("\"\"\"one"), say("one"), "the input ended before the mark");
        assert_eq!(parse("say \"\"\"x\"\"\" twice"), say("say \"\"\"x\"\"\" twice"));
        assert_eq!(parse("  "), None);
        assert_eq!(parse("\"\"\"\"\"\""), None);
    }

    #[test]
    fn commands_begin_with_a_slash() {
        let command = |text| match parse(text) {
            Some(Line::Command(command)) => command,
            other => panic!("{other:?}"),
        };
        assert_eq!(command("/help"), Command::Help);
        assert_eq!(command(" /system Be brief. "), Command::System(Some("Be brief.".to_owned())));
        assert_eq!(command("/system"), Command::System(None));
        assert_eq!(command("/save a b.json"), Command::Save(Some("a b.json".into())));
        assert_eq!(command("/nonsense 1"), Command::Unknown("/nonsense".to_owned()));
        assert_eq!(parse("1/2"), say("1/2"));
    }

    #[test]
    fn a_pipe_is_read_line_by_line_and_a_line_that_is_no_text_is_told() {
        let mut input =
            &b"\xef\xbb\xbfone\r\ntwo\\\nthree\nf\xffur\n\xef\xbb\xbffive\n\n\"\"\"six\n\xff\nseven\n\"\"\""[..];
        let mut lines = 0;
        let mut read = || read_piped(&mut input, &mut lines).unwrap();
        let text = |text: &str| Some(Typed::Text(text.to_owned()));
        assert_eq!(read(), text("one\r\n"), "without the mark");
        assert_eq!(read(), text("two\\\nthree\n"));
        assert_eq!(read(), Some(Typed::Unreadable(4)));
        assert_eq!(read(), text("\u{feff}five\n"), "a mark elsewhere is text");
        assert_eq!(read(), text("\n"));
        assert_eq!(read(), Some(Typed::Unreadable(8)));
        assert_eq!(read(), text("seven\n"));
        assert_eq!(read(), text("\"\"\""));
        assert_eq!(read(), None);
    }
}
