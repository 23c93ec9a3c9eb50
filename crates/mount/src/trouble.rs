//! Why a mount program failed, read from what it printed.

/// The kinds of failure that users meet, each with its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
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
const SIGNS: &[(&[&str], Trouble)] = &[
    (&["fuse: device not found"], Trouble::Device),
    (&["/dev/fuse"], Trouble::Device),
    (&["mount failed", "operation not permitted"], Trouble::Capability),
    (&["mount failed", "permission denied"], Trouble::Capability),
    (&["invalid credentials"], Trouble::Keys),
    (&["signaturedoesnotmatch"], Trouble::Keys),
    (&["invalidaccesskeyid"], Trouble::Keys),
    (&["could not establish security credentials"], Trouble::Keys),
    (&["remote mountpath", "not found"], Trouble::Missing),
    (&["bucket or key not found"], Trouble::Missing),
    (&["nosuchbucket"], Trouble::Missing),
    (&["there is no enough disk space"], Trouble::CacheFull),
    (&["no space left on device"], Trouble::CacheFull),
    (&["unable to connect"], Trouble::Unreachable),
    (&["could not resolve host"], Trouble::Unreachable),
    (&["couldn't connect"], Trouble::Unreachable),
    (&["connection refused"], Trouble::Unreachable),
    (&["bucket region is not"], Trouble::Unreachable),
    (&["cache directory permission"], Trouble::Permission),
    (&["unable to access mountpoint"], Trouble::Permission),
    (&["permission denied"], Trouble::Permission),
];

impl Trouble {
    /// Recognises the first known sign in the lines a program printed.
    pub fn recognise<S: AsRef<str>>(lines: &[S]) -> Option<Self> {
        lines.iter().find_map(|line| {
            let line = line.as_ref().to_lowercase();
            let fits = |signs: &[&str]| signs.iter().all(|sign| line.contains(sign));
            SIGNS.iter().find(|(signs, _)| fits(signs)).map(|(_, trouble)| *trouble)
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
            ("fuse: device not found, try 'modprobe fuse' first", Trouble::Device),
            ("fuse: failed to open /dev/fuse: Operation not permitted", Trouble::Device),
            ("fuse: mount failed: Operation not permitted", Trouble::Capability),
            (
                "[CRT] s3fs.cpp:s3fs_check_service(3520): invalid credentials(host=http://x) - \
                 result of checking service.",
                Trouble::Keys,
            ),
            ("bucket or key not found(host=http://x) - result", Trouble::Missing),
            ("[CRT] remote mountpath /sessions/a not found.", Trouble::Missing),
            ("unable to connect(host=http://x) - result of", Trouble::Unreachable),
            ("s3fs: MOUNTPOINT: /mnt/0 permission denied.", Trouble::Permission),
            ("s3fs: There is no enough disk space for used as cache", Trouble::CacheFull),
        ];
        for (line, trouble) in cases {
            assert_eq!(Trouble::recognise(&[line]), Some(trouble), "{line}");
        }
        assert_eq!(Trouble::recognise(&["started"]), None);
    }
}
