//! What the kernel says about processes on this machine: processor time and memory, from `/proc`
//! (proc(5)).

use std::{fs, time::Duration};

use tokio::time::Instant;

use super::super::failure::Failure;

/// The unit of processor times in `/proc/PID/stat`: `USER_HZ`, which is 100 wherever Belfry runs.
const TICK: Duration = Duration::from_millis(10);

/// The server's processes, or none.
#[derive(Clone, Debug, Default)]
pub(super) struct Watched(Vec<String>);

/// A moment, to tell the use since.
#[derive(Debug)]
pub(super) struct Mark {
    at: Instant,
    server: Duration,
    own: Duration,
}

/// Processor time since a mark.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used {
    pub(super) wall: Duration,
    /// Of all watched processes together; zero where none is.
    pub(super) server: Duration,
    /// Of this process.
    pub(super) own: Duration,
}

impl Watched {
    pub(super) fn new(pids: &[u32]) -> Self {
        Self(pids.iter().map(u32::to_string).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// # Errors
    /// A process is not there, or may not be looked at.
    pub(super) fn mark(&self) -> Result<Mark, Failure> {
        Ok(Mark { at: Instant::now(), server: self.cpu()?, own: cpu("self")? })
    }

    /// Memory of all processes together, in bytes: the anonymous part of the proportional set size
    /// (`Pss_Anon`). The rest is mostly the program itself, whose share changes whenever another
    /// process of the same program comes or goes, and this one is such a process.
    ///
    /// # Errors
    /// As [`Self::mark`]; other users' processes need the right to trace them (ptrace(2)).
    pub(super) fn memory(&self) -> Result<u64, Failure> {
        self.0.iter().map(|pid| pss(&read(pid, "smaps_rollup")?, pid)).sum()
    }

    fn cpu(&self) -> Result<Duration, Failure> {
        self.0.iter().map(|pid| cpu(pid)).sum()
    }
}

impl Mark {
    pub(super) fn used(&self, watched: &Watched) -> Result<Used, Failure> {
        let now = watched.mark()?;
        Ok(Used {
            wall: now.at - self.at,
            server: now.server.saturating_sub(self.server),
            own: now.own.saturating_sub(self.own),
        })
    }
}

fn read(pid: &str, file: &str) -> Result<String, Failure> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path)
        .map_err(|error| Failure::new(format!("--pid: cannot read {path}: {error}")))
}

fn cpu(pid: &str) -> Result<Duration, Failure> {
    ticks(&read(pid, "stat")?)
        .map(|ticks| TICK.saturating_mul(ticks))
        .ok_or_else(|| Failure::new(format!("--pid: /proc/{pid}/stat is not as expected")))
}

/// `utime` and `stime`, fields 14 and 15. The name before them may hold spaces and brackets.
fn ticks(stat: &str) -> Option<u32> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

fn pss(rollup: &str, pid: &str) -> Result<u64, Failure> {
    let line = |name| rollup.lines().find_map(|line: &str| line.strip_prefix(name));
    // Kernels before 5.4 do not part it.
    line("Pss_Anon:")
        .or_else(|| line("Pss:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .ok_or_else(|| Failure::new(format!("--pid: /proc/{pid}/smaps_rollup has no Pss")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_from_the_last_bracket() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 3 4 20 0 1 0 100 1 2";
        assert_eq!(ticks(stat), Some(300));
        assert_eq!(ticks("7 (a"), None);
    }

    #[test]
    fn this_process_can_be_watched() {
        let watched = Watched::new(&[std::process::id()]);
        let mark = watched.mark().unwrap();
        let used = mark.used(&watched).unwrap();
        assert_eq!(used.server, used.own);
        let memory = watched.memory().unwrap();
        assert!((1 << 20..1 << 36).contains(&memory), "{memory}");
    }

    #[test]
    fn a_process_that_is_not_there_is_told() {
        let told = Watched::new(&[u32::MAX]).mark().unwrap_err().to_string();
        assert!(told.starts_with("--pid: cannot read /proc/4294967295/stat"), "{told}");
        assert!(pss("Rss: 5 kB\n", "1").is_err());
        assert_eq!(pss("Rss: 5 kB\nPss:        3 kB\n", "1").unwrap(), 3072);
        assert_eq!(pss("Pss: 3 kB\nPss_Anon:  2 kB\n", "1").unwrap(), 2048);
    }
}
