//! The terminal is QEMU's; if QEMU is killed, it is given back as it was.

use std::io::{IsTerminal, stdin};

use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};

/// The settings of the terminal on stdin, put back when dropped.
#[derive(Debug)]
pub(super) struct Terminal {
    settings: Option<Termios>,
}

impl Terminal {
    /// Remembers the settings, if stdin is a terminal.
    pub(super) fn remember() -> Self {
        let settings = stdin()
            .is_terminal()
            .then(|| tcgetattr(stdin()).ok())
            .flatten();
        Self { settings }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // In the background it is somebody else's, and touching it would stop us.
        if let Some(settings) = &self.settings
            && tcgetpgrp(stdin()).is_ok_and(|group| group == getpgrp())
        {
            let _ = tcsetattr(stdin(), SetArg::TCSANOW, settings);
        }
    }
}
