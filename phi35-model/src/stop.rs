//! Texts that end a generation.

/// Watches streamed text for stop texts. What might be the beginning of one is held back until it is clear.
#[derive(Debug, Clone)]
pub struct StopText {
    stops: Vec<String>,
    held: String,
}

impl StopText {
    /// Watches for any of these; empty ones never match.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(), held: String::new() }
    }

    /// Takes the next piece. Returns the text to show, and whether a stop text followed it.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            let shown = self.held[..at].to_owned();
            self.held.clear();
            return (shown, true);
        }
        let begins_a_stop = |tail: &str| self.stops.iter().any(|stop| stop.starts_with(tail));
        let clear = self.held.char_indices().map(|(i, _)| i).find(|&i| begins_a_stop(&self.held[i..]));
        let rest = self.held.split_off(clear.unwrap_or(self.held.len()));
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back when the text ended without a stop text.
    pub fn finish(self) -> String {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything shown, and whether it was stopped.
    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut watch = StopText::new(stops.iter().map(|s| s.to_string()).collect());
        let mut shown = String::new();
        for piece in pieces {
            let (text, stopped) = watch.push(piece);
            shown.push_str(&text);
            if stopped {
                return (shown, true);
            }
        }
        (shown + &watch.finish(), false)
    }

    #[test]
    fn a_stop_text_is_found_across_pieces_and_never_shown() {
        assert_eq!(run(&["END"], &["one E", "N", "D two"]), ("one ".to_owned(), true));
        assert_eq!(run(&["END"], &["one E", "NE", "ND"]), ("one EN".to_owned(), true));
        assert_eq!(run(&["b", "ab"], &["xab"]), ("x".to_owned(), true), "the earliest");
        assert_eq!(run(&["é!"], &["caf", "é", "?"]), ("café?".to_owned(), false));
        assert_eq!(run(&["END"], &["one EN"]), ("one EN".to_owned(), false), "held back, then given");
        assert_eq!(run(&[""], &["a"]), ("a".to_owned(), false));
    }

    #[test]
    fn only_a_possible_beginning_is_held_back() {
        let mut watch = StopText::new(vec!["END".to_owned()]);
        assert_eq!(watch.push("text E"), ("text ".to_owned(), false));
        assert_eq!(watch.push("lse"), ("Else".to_owned(), false));
    }
}
