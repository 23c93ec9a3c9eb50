//! The rights that file work is done with (executor 3.1).
//!
//! File work for a user runs on a thread that has the user's file-system ids and groups and no effective
//! capability, so that the kernel refuses what it would refuse the user's own programs. Threads that the
//! pool starts, and everything else of the daemon, have root's rights.

use std::cell::{Cell, RefCell};
use std::io;
use std::sync::{Arc, LazyLock};

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, capabilities, no_new_privs, set_capabilities,
    set_thread_groups,
};

use super::accounts::User;
use super::log;

/// What a thread has by itself. Read before the first thread changes its own.
static OWN: LazyLock<io::Result<Own>> = LazyLock::new(|| {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let (groups, capabilities) = (rustix::process::getgroups()?, capabilities(None)?);
    Ok(Own { uid, gid, groups, capabilities })
});

thread_local! {
    /// Whose rights this thread has; `None`: its own.
    static CURRENT: RefCell<Option<Rights>> = const { RefCell::new(None) };
    static OVERRIDES: Cell<bool> = const { Cell::new(false) };
}

struct Own {
    uid: u32,
    gid: u32,
    groups: Vec<Gid>,
    capabilities: CapabilitySets,
}

/// A user's rights on files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rights(Arc<Ids>);

#[derive(Debug, PartialEq, Eq)]
struct Ids {
    uid: u32,
    gid: u32,
    groups: Vec<Gid>,
}

impl Rights {
    /// The rights of a user with these groups.
    pub(super) fn new(user: &User, groups: &[u32]) -> Self {
        // This number means none.
        let groups = groups.iter().filter(|gid| **gid != u32::MAX);
        let groups = groups.map(|gid| Gid::from_raw(*gid)).collect();
        Self(Arc::new(Ids { uid: user.uid, gid: user.gid, groups }))
    }

    /// The rights of a user in the groups of the image. Blocks.
    pub(super) fn of(user: &User) -> io::Result<Self> {
        // Root's calls keep root's rights, whatever its groups are.
        let groups = if user.uid == 0 { Vec::new() } else { user.groups()? };
        Ok(Self::new(user, &groups))
    }

    /// Gives these rights to this thread, which has its own. If that fails, it keeps its own.
    fn take(&self) -> io::Result<()> {
        let own = own()?;
        // The C library's function would change all threads. Where it is forbidden nothing changed yet.
        set_thread_groups(&self.0.groups)?;
        let taken = set_file_gid(self.0.gid)
            .and_then(|()| set_file_uid(self.0.uid))
            .and_then(|()| set_effective(own, CapabilitySet::empty()))
            .and_then(|()| stay_untraceable());
        if taken.is_err() {
            or_abort("take back the own rights", take_own());
        }
        taken
    }
}

/// Works with a user's rights; with root's if the user is root. May be nested.
///
/// # Errors
/// If the thread cannot take the rights; then nothing is done.
pub(super) fn as_user<T>(rights: &Rights, work: impl FnOnce() -> T) -> io::Result<T> {
    let _back = Switch::to((rights.0.uid != 0).then(|| rights.clone()))?;
    Ok(work())
}

/// Works with root's rights, for what is not done for a user. Free where the thread has them already.
pub(super) fn as_root<T>(work: impl FnOnce() -> T) -> io::Result<T> {
    let _back = Switch::to(None)?;
    Ok(work())
}

/// True if this thread has a user's rights instead of its own.
pub(super) fn is_user() -> bool {
    CURRENT.with_borrow(Option::is_some)
}

/// True while [`overriding`] works on this thread.
pub(super) fn is_overriding() -> bool {
    OVERRIDES.get()
}

/// True if users of this sandbox can become root: set-user-id programs such as sudo work.
pub(super) fn users_can_become_root() -> bool {
    matches!(no_new_privs(), Ok(false))
}

/// Works as the user whose rights this thread has, but past the permissions of files. What is made
/// belongs to the user from its first moment. Only for names that nobody but root controls.
///
/// # Errors
/// If the daemon lacks the capability for it; then nothing is done.
pub(super) fn overriding<T>(work: impl FnOnce() -> T) -> io::Result<T> {
    struct Back(&'static Own);
    impl Drop for Back {
        fn drop(&mut self) {
            OVERRIDES.set(false);
            or_abort("give up a capability", set_effective(self.0, CapabilitySet::empty()));
        }
    }
    assert!(is_user() && !is_overriding(), "overriding is for a user's work, and not nested");
    let own = own()?;
    set_effective(own, CapabilitySet::DAC_OVERRIDE)?;
    let _back = Back(own);
    OVERRIDES.set(true);
    Ok(work())
}

/// Goes back to the rights of before when it is dropped, also by a panic.
struct Switch {
    before: Option<Rights>,
    is_changed: bool,
}

impl Switch {
    fn to(rights: Option<Rights>) -> io::Result<Self> {
        assert!(!is_overriding(), "rights are not changed while they are overridden");
        let before = CURRENT.take();
        if before == rights {
            CURRENT.set(rights);
            return Ok(Self { before: None, is_changed: false });
        }
        if before.is_some() {
            or_abort("take back the own rights", take_own());
        }
        let switch = Self { before, is_changed: true };
        if let Some(rights) = rights {
            rights.take()?;
            CURRENT.set(Some(rights));
        }
        Ok(switch)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        if !self.is_changed {
            return;
        }
        if CURRENT.take().is_some() {
            or_abort("take back the own rights", take_own());
        }
        if let Some(before) = self.before.take() {
            or_abort("take back a user's rights", before.take());
            CURRENT.set(Some(before));
        }
    }
}

/// A thread of the pool never goes on with rights that are not the ones it should have.
fn or_abort(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        log!("failed to {what}: {error}");
        std::process::abort();
    }
}

fn own() -> io::Result<&'static Own> {
    let own = OWN.as_ref();
    own.map_err(|error| io::Error::new(error.kind(), format!("failed to read own rights: {error}")))
}

fn take_own() -> io::Result<()> {
    let own = own()?;
    // First, since the rest needs them.
    set_capabilities(None, own.capabilities)?;
    set_file_uid(own.uid)?;
    set_file_gid(own.gid)?;
    set_thread_groups(&own.groups)?;
    stay_untraceable()
}

/// The kernel answers every change of a process's ids by letting it be traced if the machine's
/// `fs.suid_dumpable` says so.
fn stay_untraceable() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

fn set_effective(own: &Own, effective: CapabilitySet) -> io::Result<()> {
    Ok(set_capabilities(None, CapabilitySets { effective, ..own.capabilities })?)
}

fn set_file_uid(uid: u32) -> io::Result<()> {
    // SAFETY: setfsuid takes a number and changes this thread only.
    #[allow(unsafe_code)]
    let now = unsafe {
        libc::setfsuid(uid);
        // It never says that it failed; this number is refused, and the answer is the one in force.
        libc::setfsuid(u32::MAX)
    };
    in_force(now, uid)
}

fn set_file_gid(gid: u32) -> io::Result<()> {
    // SAFETY: setfsgid takes a number and changes this thread only.
    #[allow(unsafe_code)]
    let now = unsafe {
        libc::setfsgid(gid);
        libc::setfsgid(u32::MAX)
    };
    in_force(now, gid)
}

fn in_force(now: i32, wanted: u32) -> io::Result<()> {
    match now.cast_unsigned() == wanted {
        true => Ok(()),
        false => Err(io::Error::from_raw_os_error(libc::EPERM)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    fn rights(uid: u32, groups: &[u32]) -> Rights {
        let user = User { name: "x".into(), uid, gid: groups[0], home: "/".into() };
        Rights::new(&user, groups)
    }

    /// File-system user, group, supplementary groups and effective capabilities, as the kernel tells them.
    fn status() -> [String; 4] {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        ["Uid:", "Gid:", "Groups:", "CapEff:"].map(|name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            // The last of four numbers is the file system's.
            let last = name.ends_with("id:").then(|| line.split_whitespace().last());
            last.flatten().unwrap_or(line.trim()).to_owned()
        })
    }

    const NONE: &str = "0000000000000000";
    const DAC_OVERRIDE: &str = "0000000000000002";

    #[test]
    fn rights_are_taken_nested_and_given_back() {
        let own = status();
        let (a, b) = (rights(1234, &[1235, 27]), rights(4321, &[4322]));
        let user_a = ["1234", "1235", "27 1235", NONE];
        as_user(&a, || {
            assert_eq!(status(), user_a);
            as_user(&a, || assert_eq!(status(), user_a)).unwrap();
            as_user(&b, || assert_eq!(status(), ["4321", "4322", "4322", NONE])).unwrap();
            assert_eq!(status(), user_a);
            as_root(|| assert_eq!(status(), own)).unwrap();
            assert_eq!(status(), user_a);
            overriding(|| {
                assert_eq!(status(), ["1234", "1235", "27 1235", DAC_OVERRIDE]);
                assert!(is_overriding());
            })
            .unwrap();
            assert_eq!(status(), user_a);
            as_user(&rights(0, &[0]), || assert_eq!(status(), own)).unwrap();
        })
        .unwrap();
        assert_eq!(status(), own);
        assert!(!is_user());
    }

    #[test]
    fn a_panic_gives_them_back_too() {
        let own = status();
        let user = rights(1234, &[1235]);
        let work = || {
            as_user(&user, || overriding(|| as_user(&user, || ()).unwrap()).unwrap()).unwrap();
        };
        // Rights are not changed while they are overridden.
        catch_unwind(AssertUnwindSafe(work)).unwrap_err();
        assert_eq!(status(), own);
        assert!(!is_user() && !is_overriding());
    }

    #[test]
    fn rights_that_cannot_be_taken_are_an_error_that_leaves_nothing() {
        let own = status();
        // No number of a user.
        as_user(&rights(u32::MAX, &[1235]), || ()).unwrap_err();
        assert_eq!(status(), own);
        as_user(&rights(1234, &[u32::MAX]), || ()).unwrap_err();
        assert_eq!(status(), own);
    }

    #[test]
    fn only_the_own_thread_changes() {
        let own = status();
        as_user(&rights(1234, &[1235]), || {
            let started = as_root(|| std::thread::spawn(status)).unwrap();
            assert_eq!(started.join().unwrap(), own);
        })
        .unwrap();
    }
}
