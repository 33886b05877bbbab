//! The levels of this processor.

use qins_codec::Level;
use std::{io::Write, sync::Once};

/// The levels of this processor; those that it lacks are named once, on standard error.
pub fn levels() -> impl Iterator<Item = Level> {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        let lacking: Vec<_> = Level::ALL.into_iter().filter(|level| !level.is_supported()).map(Level::name).collect();
        if !lacking.is_empty() {
            // Past the test runner's capture, so that it is seen where tests pass.
            let _ = writeln!(std::io::stderr(), "skipped: this processor lacks {}", lacking.join(", "));
        }
    });
    Level::all_supported()
}
