//! Why a mount program failed, read from what it printed.

/// The kinds of failure that users meet, each with its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountErrorKind {
    /// /dev/fuse is missing or may not be opened.
    Device,
    /// The mount call itself was refused.
    Capability,
    /// The endpoint refused the key.
    Keys,
    /// A local directory may not be used.
    Permission,
    /// Nothing answers at the endpoint, or something that is no S3 server.
    Unreachable,
    /// The bucket or the prefix does not exist.
    Missing,
    /// The cache has no room.
    CacheFull,
}

/// What a line must contain, in lower case, and what it then means. More specific texts come first.
const SIGNS: &[(&[&str], MountErrorKind)] = &[
    (&["fuse: device not found"], MountErrorKind::Device),
    (&["/dev/fuse"], MountErrorKind::Device),
    (&["mount failed", "operation not permitted"], MountErrorKind::Capability),
    (&["mount failed", "permission denied"], MountErrorKind::Capability),
    (&["invalid credentials"], MountErrorKind::Keys),
    (&["signaturedoesnotmatch"], MountErrorKind::Keys),
    (&["invalidaccesskeyid"], MountErrorKind::Keys),
    (&["could not establish security credentials"], MountErrorKind::Keys),
    (&["remote mountpath", "not found"], MountErrorKind::Missing),
    (&["bucket or key not found"], MountErrorKind::Missing),
    (&["nosuchbucket"], MountErrorKind::Missing),
    (&["there is no enough disk space"], MountErrorKind::CacheFull),
    (&["no space left on device"], MountErrorKind::CacheFull),
    (&["unable to connect"], MountErrorKind::Unreachable),
    (&["could not resolve host"], MountErrorKind::Unreachable),
    (&["couldn't connect"], MountErrorKind::Unreachable),
    (&["connection refused"], MountErrorKind::Unreachable),
    (&["bucket region is not"], MountErrorKind::Unreachable),
    (&["cache directory permission"], MountErrorKind::Permission),
    (&["unable to access mountpoint"], MountErrorKind::Permission),
    (&["permission denied"], MountErrorKind::Permission),
];

impl MountErrorKind {
    /// Recognises the first known sign in the lines a program printed.
    pub fn recognise<S: AsRef<str>>(lines: &[S]) -> Option<Self> {
        lines.iter().find_map(|line| {
            let line = line.as_ref().to_lowercase();
            let fits = |signs: &[&str]| signs.iter().all(|sign| line.contains(sign));
            SIGNS.iter().find(|(signs, _)| fits(signs)).map(|(_, kind)| *kind)
        })
    }

    /// What to do about it, as one sentence for an error message.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Device => {
                "the container cannot use /dev/fuse: load the kernel module (modprobe fuse) and \
                 give the container the device; with userns-remap in the engine the host's node \
                 must be open to others too (chmod 666 /dev/fuse)"
            }
            Self::Capability => {
                "the kernel refused the mount: the container needs SYS_ADMIN, and on hosts with \
                 AppArmor or SELinux a profile that allows mount"
            }
            Self::Keys => "the endpoint refused the key: check access key id, secret and policy",
            Self::Permission => {
                "a directory may not be used: check the owner (uid, gid) of the mount and of its \
                 target"
            }
            Self::Unreachable => {
                "the endpoint does not answer as an S3 server: check its URL as seen from the \
                 sandbox, that it runs, and that it takes path-style requests"
            }
            Self::Missing => "the bucket or the prefix does not exist: create it first",
            Self::CacheFull => {
                "the local cache has no room: it must be larger than the largest file"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_print_is_recognised() {
        let cases = [
            ("fuse: device not found, try 'modprobe fuse' first", MountErrorKind::Device),
            ("fuse: failed to open /dev/fuse: Operation not permitted", MountErrorKind::Device),
            ("fuse: mount failed: Operation not permitted", MountErrorKind::Capability),
            (
                "[CRT] s3fs.cpp:s3fs_check_service(3520): invalid credentials(host=http://x) - \
                 result of checking service.",
                MountErrorKind::Keys,
            ),
            ("bucket or key not found(host=http://x) - result", MountErrorKind::Missing),
            ("[CRT] remote mountpath /sessions/a not found.", MountErrorKind::Missing),
            ("unable to connect(host=http://x) - result of", MountErrorKind::Unreachable),
            ("s3fs: MOUNTPOINT: /mnt/0 permission denied.", MountErrorKind::Permission),
            ("s3fs: There is no enough disk space for used as cache", MountErrorKind::CacheFull),
        ];
        for (line, kind) in cases {
            assert_eq!(MountErrorKind::recognise(&[line]), Some(kind), "{line}");
        }
        assert_eq!(MountErrorKind::recognise(&["started"]), None);
    }
}
