//! Shows the progress and the output of a call on stderr while it runs.

use std::io::{IsTerminal, Write};

use snakepit_proto::pb::{self, call_report::Report};

/// The number of characters in the bar.
const BAR_WIDTH: usize = 24;

/// The reports on stderr. The progress occupies the last line of a terminal.
#[derive(Debug, Default)]
pub(crate) struct Display {
    /// The text of the last line. `None` if it does not show progress.
    bar: Option<String>,
}

impl Display {
    /// Shows a report.
    pub(crate) fn show(&mut self, report: pb::CallReport) {
        match report.report {
            Some(Report::Progress(progress)) => {
                let text = progress_text(&progress);
                if std::io::stderr().is_terminal() {
                    self.bar = Some(text);
                    self.draw();
                } else {
                    write(&format!("{text}\n"));
                }
            }
            Some(Report::Log(log)) => {
                self.clear();
                write(&format!("{}\n", log_text(&log)));
                self.draw();
            }
            None => {}
        }
    }

    /// Removes the progress from the last line, so that other text can follow.
    pub(crate) fn clear(&self) {
        if self.bar.is_some() {
            write("\r\x1b[2K");
        }
    }

    /// Draws the progress on the last line.
    pub(crate) fn draw(&self) {
        if let Some(text) = &self.bar {
            // A terminal that is too narrow cuts the text off, because it could not clear a second line.
            write(&format!("\r\x1b[2K\x1b[?7l{text}\x1b[?7h"));
        }
    }

    /// Removes the progress for good.
    pub(crate) fn end(&mut self) {
        self.clear();
        self.bar = None;
    }
}

/// Ignores failures, because the result of the call matters more.
fn write(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

fn progress_text(progress: &pb::CallProgress) -> String {
    let pb::CallProgress { done, total, message } = progress;
    let message: String =
        message.chars().map(|char| if char.is_control() { ' ' } else { char }).take(80).collect();
    let text = match total.filter(|total| *total > 0.0) {
        Some(total) => {
            let fraction = (done / total).clamp(0.0, 1.0);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to the width")]
            let filled = (fraction * BAR_WIDTH as f64).round() as usize;
            let (filled, empty) = ("#".repeat(filled), "-".repeat(BAR_WIDTH - filled));
            format!("[{filled}{empty}] {:3.0} % {message}", fraction * 100.0)
        }
        None => format!("{done} {message}"),
    };
    text.trim_end().to_owned()
}

fn log_text(log: &pb::CallLog) -> String {
    let level = match log.level {
        ..=0 => return log.text.clone(),
        40.. => "ERROR",
        30.. => "WARN",
        20.. => "INFO",
        _ => "DEBUG",
    };
    // With a configuration of `logging`, the text may contain them already.
    if log.text.contains(level) && log.text.contains(&log.logger) {
        return log.text.clone();
    }
    format!("{level} {}: {}", log.logger, log.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_one_line_of_text() {
        let progress = |done, total, message: &str| {
            progress_text(&pb::CallProgress { done, total, message: message.to_owned() })
        };
        assert_eq!(progress(1.0, Some(4.0), "epoch 1"), "[######------------------]  25 % epoch 1");
        assert_eq!(progress(9.0, Some(4.0), ""), "[########################] 100 %");
        assert_eq!(progress(7.0, None, "two\nlines"), "7 two lines");
        let log = |level, logger: &str, text: &str| {
            let (logger, text) = (logger.to_owned(), text.to_owned());
            log_text(&pb::CallLog { level, logger, text, ..pb::CallLog::default() })
        };
        assert_eq!(
            [log(0, "", "text"), log(30, "shop", "text"), log(10, "shop", "text")],
            ["text", "WARN shop: text", "DEBUG shop: text"]
        );
        // Python's default format, where the level is `WARNING`.
        assert_eq!(log(30, "shop", "WARNING:shop:text"), "WARNING:shop:text");
    }
}
