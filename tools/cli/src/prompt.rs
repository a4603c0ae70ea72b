//! Asking a person: passwords and confirmations. Without a terminal, passwords come from standard input and
//! confirmations must be given as an option.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::failure::{Failure, Result};

/// A password: from the terminal without echo, or the first line of standard input.
pub fn password(prompt: &str) -> Result<String> {
    let wrong = |e| {
        Failure::local(
            "cannot read the password",
            "give it on the terminal, or on standard input: docklet login NAME < file",
            e,
        )
    };
    let text = if io::stdin().is_terminal() {
        rpassword::prompt_password(prompt).map_err(wrong)?
    } else {
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line).map_err(wrong)?;
        line
    };
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return Err(Failure::usage(
            "the password is empty",
            "give it on the terminal, or on standard input: docklet login NAME < file",
        ));
    }
    Ok(text.to_owned())
}

/// A new password: twice on a terminal, so that a slip is noticed.
pub fn new_password(user: &str) -> Result<String> {
    let first = password(&format!("New password for {user}: "))?;
    if io::stdin().is_terminal() && first != password("The same again: ")? {
        return Err(Failure::usage("the two passwords differ", "nothing was changed; try again"));
    }
    Ok(first)
}

/// Asks for a yes. `what` says what will be lost.
pub fn confirm(what: &str, yes: bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::usage(format!("{what} There is no terminal to ask on"), "if you mean it, add --yes"));
    }
    eprint!("{what} Go on? [y/N] ");
    let mut answer = String::new();
    let read = io::stderr().flush().and_then(|()| io::stdin().lock().read_line(&mut answer));
    match read {
        Ok(_) if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") => Ok(()),
        _ => Err(Failure::Declined),
    }
}
