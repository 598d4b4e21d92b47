//! Running programs, and waiting.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// No program that ends by itself may take longer.
const PATIENCE: Duration = Duration::from_secs(180);

/// What a program that ended left.
#[derive(Debug)]
pub struct Output {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// What it printed.
    ///
    /// # Errors
    /// It failed: what it printed to standard error, or else to standard output.
    pub fn text(self) -> anyhow::Result<String> {
        match (self.success, self.stderr.trim()) {
            (true, _) => Ok(self.stdout),
            (false, "") => bail!("{}", self.stdout.trim()),
            (false, error) => bail!("{error}"),
        }
    }
}

/// Runs a program with this input until it ends.
///
/// # Errors
/// It cannot be started, or takes too long.
pub fn run(mut command: Command, input: &str) -> anyhow::Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("{:?}", command.get_program()))?;
    let stdin = child.stdin.take().context("stdin")?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (stdout, stderr) = (stdout.context("stdout")?, stderr.context("stderr")?);
    std::thread::scope(|scope| {
        let mut stdin = stdin;
        // A program that ends without reading is no error of ours.
        scope.spawn(move || drop(stdin.write_all(input.as_bytes())));
        let out = scope.spawn(move || read(stdout));
        let error = scope.spawn(move || read(stderr));
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                bail!("{command:?} did not end within {} s", PATIENCE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let joined =
            |text: std::thread::ScopedJoinHandle<'_, String>| text.join().unwrap_or_default();
        Ok(Output { success: status.success(), stdout: joined(out), stderr: joined(error) })
    })
}

fn read(mut from: impl Read) -> String {
    let mut bytes = Vec::new();
    // What was read before a failure is still worth showing.
    let _ = from.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A process that is ended when it is dropped; what it prints is collected.
pub struct Running {
    child: Child,
    text: Arc<Mutex<String>>,
}

impl Running {
    /// Starts a program with this input, which stays open behind it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(mut command: Command) -> anyhow::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("{:?}", command.get_program()))?;
        let text = Arc::new(Mutex::new(String::new()));
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        collect(stdout.context("stdout")?, text.clone());
        collect(stderr.context("stderr")?, text.clone());
        Ok(Self { child, text })
    }

    /// Writes to its standard input.
    ///
    /// # Errors
    /// It does not read.
    pub fn write(&mut self, text: &str) -> anyhow::Result<()> {
        let stdin = self.child.stdin.as_mut().context("it reads no more")?;
        stdin.write_all(text.as_bytes())?;
        Ok(stdin.flush()?)
    }

    /// Closes its standard input.
    pub fn close(&mut self) {
        self.child.stdin = None;
    }

    /// What it printed so far, to standard output and error.
    pub fn text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it has printed `wanted`.
    ///
    /// # Errors
    /// It does not in time.
    pub fn until(&self, wanted: &str, patience: Duration) -> anyhow::Result<()> {
        eventually(&format!("{wanted:?} is printed"), patience, || {
            let text = self.text();
            anyhow::ensure!(text.contains(wanted), "it printed {text:?}");
            Ok(())
        })
    }

    /// Waits until it has ended: whether that was a success.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn wait(&mut self, patience: Duration) -> anyhow::Result<bool> {
        eventually("the program ends", patience, || {
            self.child.try_wait()?.map(|s| s.success()).context("it runs")
        })
    }

    /// Whether it has ended: whether that was a success.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn exited(&mut self) -> anyhow::Result<Option<bool>> {
        Ok(self.child.try_wait()?.map(|status| status.success()))
    }

    /// Kills it, and waits until all that it printed is collected.
    ///
    /// # Errors
    /// Somebody else holds its output open.
    pub fn end(&mut self) -> anyhow::Result<()> {
        // It may have ended by itself.
        let _ = self.child.kill();
        self.child.wait()?;
        eventually("its output is read", Duration::from_secs(10), || {
            anyhow::ensure!(Arc::strong_count(&self.text) == 1, "it is not");
            Ok(())
        })
    }

    /// Gives the terminal that its child is on another size, as a window does that is dragged.
    ///
    /// # Errors
    /// Its child is on none.
    pub fn resize(&self, columns: u16, rows: u16) -> anyhow::Result<()> {
        let child = child_of(self.child.id()).context("it has no child")?;
        let terminal = std::fs::read_link(format!("/proc/{child}/fd/0"))?;
        let mut stty = Command::new("stty");
        stty.arg("-F").arg(&terminal);
        stty.args(["cols", &columns.to_string(), "rows", &rows.to_string()]);
        run(stty, "")?.text().with_context(|| terminal.display().to_string()).map(drop)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(self.child.id().try_into()?), signal)?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that was started by another.
fn child_of(parent: u32) -> Option<u32> {
    let all = std::fs::read_dir("/proc").ok()?.flatten();
    let mut pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The program's name, in parentheses, may hold anything.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        fields.split_whitespace().nth(1) == Some(parent.to_string().as_str())
    })
}

fn collect(from: impl Read + Send + 'static, text: Arc<Mutex<String>>) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(from);
        loop {
            let Ok(chunk) = reader.fill_buf() else { return };
            if chunk.is_empty() {
                return;
            }
            let length = chunk.len();
            let more = String::from_utf8_lossy(chunk).into_owned();
            text.lock().unwrap_or_else(PoisonError::into_inner).push_str(&more);
            reader.consume(length);
        }
    });
}

pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

/// Tries until it succeeds.
///
/// # Errors
/// The last failure, when the time is up.
pub fn eventually<T>(
    what: &str,
    patience: Duration,
    mut attempt: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("not within {} s: {what}", patience.as_secs())));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_read_their_input_and_fail_with_their_error() -> anyhow::Result<()> {
        let large = "x".repeat(1 << 20);
        assert_eq!(run(Command::new("cat"), &large)?.text()?, large);
        let mut failing = Command::new("sh");
        failing.args(["-c", "echo shown; echo why >&2; exit 3"]);
        let error = run(failing, "")?.text().expect_err("it failed").to_string();
        assert_eq!(error, "why");
        Ok(())
    }

    #[test]
    fn the_last_failure_is_quoted() {
        let mut attempts = 0;
        let result: anyhow::Result<()> = eventually("it works", Duration::ZERO, || {
            attempts += 1;
            bail!("attempt {attempts}")
        });
        let error = format!("{:#}", result.expect_err("never"));
        assert!(error.starts_with("not within 0 s: it works: attempt "), "{error}");
    }
}
