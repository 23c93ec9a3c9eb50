//! Where a session's workspace is, if the sandbox has one.

use std::path::PathBuf;

/// The target of the first FUSE mount, which is the workspace's: before the claim there is none.
pub(crate) fn find() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")
        .inspect_err(|error| crate::log!("failed to read the list of mounts: {error}"))
        .ok()?;
    target_in(&mounts)
}

fn target_in(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let is_fuse = file_system.starts_with("fuse.") || file_system.starts_with("fuse ");
        is_fuse.then(|| unescaped(mount.split(' ').nth(4)?))?
    })
}

/// The kernel writes blanks and backslashes in octal.
fn unescaped(path: &str) -> Option<PathBuf> {
    let mut parts = path.split('\\');
    let mut plain = parts.next()?.to_owned();
    for part in parts {
        let code = u8::from_str_radix(part.get(..3)?, 8).ok()?;
        plain.push(char::from(code));
        plain.push_str(part.get(3..)?);
    }
    Some(plain.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_fuse_mount() {
        let mounts = "22 1 0:21 / / rw - overlay overlay rw\n\
                      30 22 0:50 / /work\\040space rw,nosuid shared:1 - fuse.s3fs b:/p rw\n\
                      31 22 0:51 / /other rw - fuse.s3fs b:/q rw\n";
        assert_eq!(target_in(mounts), Some(PathBuf::from("/work space")));
        assert_eq!(target_in("22 1 0:21 / / rw - overlay overlay rw\n"), None);
        assert_eq!(target_in("30 22 0:50 / /sys/fs/fuse/connections rw - fusectl none rw\n"), None);
    }
}
