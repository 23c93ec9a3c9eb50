//! The programs' caches: one directory for each program ever started, on the engine's disk or in
//! memory. A new program never sees an old one's cache: after a crash that holds data which the store
//! does not have.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};
use sandyard_types::Cache;

use super::mount_run::MountRun;

/// How long a program may stand still while its cache is trimmed.
const LONGEST_HALT: Duration = Duration::from_millis(200);

/// Makes the cache directory of a program.
pub(super) fn prepare(cache: Cache, run: MountRun, disk: bool) -> io::Result<()> {
    if !disk && matches!(cache, Cache::Disk { .. }) {
        let message = "a disk cache needs a volume at /.sandyard/cache, and the container has none";
        return Err(io::Error::new(io::ErrorKind::NotFound, message));
    }
    let path = run.cache();
    fs::create_dir(&path)?;
    if let Cache::Tmpfs { size_mib } = cache {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let data = std::ffi::CString::new(format!("mode=700,size={size_mib}m"))?;
        mount("tmpfs", &path, "tmpfs", flags, data.as_c_str())?;
    }
    Ok(())
}

/// Makes directories of a cache that its program cannot write to, although it is root.
pub(super) fn seal(run: MountRun, directories: &[String]) -> io::Result<()> {
    for name in directories {
        let path = Path::new(&run.cache()).join(name);
        fs::create_dir(&path)?;
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        mount("tmpfs", &path, "tmpfs", flags, c"mode=700,size=4k")?;
    }
    Ok(())
}

/// Removes the cache directory of a program that has ended.
pub(super) fn remove(run: MountRun) -> io::Result<()> {
    let path = run.cache();
    let inside = match fs::read_dir(&path) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for mounted in inside.iter().map(PathBuf::as_path).chain([Path::new(&path)]) {
        match unmount(mounted, UnmountFlags::DETACH) {
            // Most of it is no mount.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Bytes of memory that a cache may take.
pub(super) fn memory(cache: Cache) -> u64 {
    match cache {
        Cache::Tmpfs { size_mib } => u64::from(size_mib) << 20,
        Cache::Disk { .. } => 0,
    }
}

/// A cached file.
struct Cached {
    path: PathBuf,
    identity: (u64, u64),
    bytes: u64,
    used: SystemTime,
}

/// Drops the files longest unused and not open until the cache is below `limit` bytes. The program
/// stands still meanwhile, or it could open a file between the look at its descriptors and the removal.
/// The caller lets it go on again whatever becomes of this worker.
pub(super) fn trim(run: MountRun, limit: u64, program: Pid) -> io::Result<()> {
    let mut files = Vec::new();
    // Beside the directory with the contents s3fs has hidden ones for its own use.
    for entry in fs::read_dir(run.cache())? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            list(&entry.path(), &mut files)?;
        }
    }
    let mut total: u64 = files.iter().map(|file| file.bytes).sum();
    if total <= limit {
        return Ok(());
    }
    files.sort_by_key(|file| file.used);
    kill_process(program, Signal::STOP)?;
    let end = Instant::now() + LONGEST_HALT;
    let result = wait_until_halted(program, end).and_then(|()| {
        let open = open_files(program)?;
        // A little further down than needed, so that the next file does not start this again.
        let goal = limit - limit / 5;
        for file in files.iter().filter(|file| !open.contains(&file.identity)) {
            if total <= goal || Instant::now() > end {
                break;
            }
            fs::remove_file(&file.path)?;
            total = total.saturating_sub(file.bytes);
        }
        Ok(())
    });
    kill_process(program, Signal::CONT)?;
    result
}

/// Collects the files in and below a directory.
fn list(directory: &Path, files: &mut Vec<Cached>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // Files come and go while this looks.
        let Some(metadata) = present(entry.metadata())? else {
            continue;
        };
        if metadata.is_dir() {
            list(&entry.path(), files)?;
        } else if metadata.is_file() {
            let used = metadata.modified()?.max(metadata.accessed()?);
            files.push(Cached {
                path: entry.path(),
                identity: identity(&metadata),
                bytes: metadata.blocks() * 512,
                used,
            });
        }
    }
    Ok(())
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A stop signal reaches the threads one by one.
fn wait_until_halted(program: Pid, end: Instant) -> io::Result<()> {
    loop {
        let mut moving = false;
        for thread in fs::read_dir(format!("/proc/{program}/task"))? {
            let stat = fs::read_to_string(thread?.path().join("stat"))?;
            // The state follows the name, which may itself hold spaces and brackets.
            let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
            moving |= !matches!(state, Some('T' | 't' | 'Z' | 'X'));
        }
        if !moving {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the program does not halt"));
        }
        sleep(Duration::from_millis(1));
    }
}

fn open_files(program: Pid) -> io::Result<HashSet<(u64, u64)>> {
    let mut open = HashSet::new();
    for descriptor in fs::read_dir(format!("/proc/{program}/fd"))? {
        if let Some(metadata) = present(fs::metadata(descriptor?.path()))? {
            open.insert(identity(&metadata));
        }
    }
    Ok(open)
}
