//! The emulator. It needs no virtualization of the machine, and nothing of the guest leaves it but its console.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::guest::Kernel;

pub(super) const PROGRAM: &str = "qemu-system-x86_64";

/// Memory of a guest: the programs are in it twice while it starts.
const MEMORY: &str = "1G";
/// Between two looks at whether it ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Starts `kernel` with these programs, and gives what its console said when it ended or had to be ended.
pub(super) fn run(kernel: &Kernel, programs: &Path, log: &Path, limit: Duration) -> Result<String> {
    let initramfs = log.with_extension("initramfs");
    let mut joined = File::create(&initramfs).with_context(|| format!("make {}", initramfs.display()))?;
    // The kernel unpacks one archive after the other.
    for part in [programs, &kernel.modules()] {
        let mut part = File::open(part).with_context(|| format!("open {}", part.display()))?;
        io::copy(&mut part, &mut joined)?;
    }
    drop(joined);
    let console = format!("file:{}", log.display());
    let mut guest = Command::new(PROGRAM)
        .args(["-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", MEMORY])
        // The guest's clock goes with its instructions, so no deadline passes because this machine is busy; while the
        // guest waits its clock leaps.
        .args(["-icount", "shift=0,sleep=off"])
        .args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", &console])
        .args(["-append", "console=ttyS0 panic=-1 loglevel=4"])
        .arg("-kernel")
        .arg(kernel.image())
        .arg("-initrd")
        .arg(&initramfs)
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("start {PROGRAM}"))?;
    let end = Instant::now() + limit;
    while guest.try_wait()?.is_none() {
        if Instant::now() > end {
            guest.kill()?;
            guest.wait()?;
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
    fs::remove_file(&initramfs)?;
    let text = fs::read(log).with_context(|| format!("read {}", log.display()))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
