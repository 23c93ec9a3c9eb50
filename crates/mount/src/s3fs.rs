//! s3fs 1.90: a closed file is in the store, whatever happens to the program afterwards (design 6.3).
//!
//! It reads nothing but its key file, mounts by itself (it runs as root), and exits when the mount is
//! gone. `sync` has nothing to do for closed files: each close waits for the upload.
//!
//! Left alone it would lose what is written, whatever the options; [`PRELOAD`] mends that. With a `umask`
//! every file shows the same mode, whatever chmod says.

use sandyard_types::{Access, Cache, Secret};

use crate::plan::{ATTRIBUTES_LIMIT, Credentials, KeyFile, Mount, MountPaths, MountPlan};

/// Where the bundle has the library of the crate `sandyard-s3fs-guard`.
const PRELOAD: &str = "/lib/sandyard-s3fs-guard.so";

/// First descriptor after the standard ones.
const KEY_DESCRIPTOR: i32 = 3;

/// Space that s3fs leaves free where its cache is.
const DISKFREE_MIB: u32 = 20;

pub(crate) fn plan(
    mount: &Mount<'_>,
    credentials: &Credentials<'_>,
    places: MountPaths<'_>,
) -> MountPlan {
    let source = format!("{}:/{}", mount.bucket, mount.prefix.as_str().trim_end_matches('/'));
    let mut options = vec![
        format!("url={}", credentials.endpoint),
        format!("passwd_file=/proc/self/fd/{KEY_DESCRIPTOR}"),
        format!("uid={},gid={}", mount.uid, mount.gid),
        // Open files live in the cache and not in a temporary directory. The default free-space reserve
        // is larger than a small cache, and then s3fs does not start.
        format!("use_cache={},ensure_diskfree={DISKFREE_MIB}", places.cache),
        "use_path_request_style,allow_other,umask=022".to_owned(),
        transfers(mount.cache),
        format!("stat_cache_expire={},max_stat_cache_size=100000", ATTRIBUTES_LIMIT.as_secs()),
        "retries=5,connect_timeout=5".to_owned(),
        format!("fsname={},subtype=s3fs", escape(&source)),
    ];
    if mount.access == Access::ReadOnly {
        options.push("ro".to_owned());
    }
    let content =
        format!("{}:{}\n", credentials.access_key_id, credentials.secret_access_key.reveal());
    MountPlan {
        program: "/bin/s3fs",
        arguments: vec![
            source.clone(),
            places.mount_point.to_owned(),
            "-f".to_owned(),
            "-o".to_owned(),
            options.join(","),
        ],
        environment: vec![("HOME", "/"), ("LANG", "C.UTF-8"), ("LD_PRELOAD", PRELOAD)],
        preload: PRELOAD,
        key: KeyFile { descriptor: KEY_DESCRIPTOR, content: Secret::new(content) },
        // What s3fs notes here lets it take up an old cache file at the next open without a look at the
        // object's time: if the object was overwritten in the store meanwhile, readers get the old bytes
        // cut or stretched to the new length, for good. Without notes every first open loads afresh.
        sealed: vec![format!(".{}.stat", mount.bucket)],
        source,
    }
}

/// Parallel transfers of large files. s3fs does not start unless the cache has room for all parts of one
/// upload beside its reserve; half of a small cache is left for files that are open.
fn transfers(cache: Cache) -> String {
    let (count, part_mib) = match cache {
        Cache::Tmpfs { size_mib } if size_mib < 300 => {
            ((size_mib.saturating_sub(DISKFREE_MIB) / 2 / 10).clamp(1, 8), 10)
        }
        Cache::Tmpfs { .. } | Cache::Disk { .. } => (8, 16),
    };
    format!("multireq_max=32,parallel_count={count},multipart_size={part_mib}")
}

/// A value inside an `-o` list: libfuse splits at commas unless a backslash is before them.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,")
}

#[cfg(test)]
mod tests {
    use sandyard_types::MountDriver;

    use super::*;

    fn planned(prefix: &str, access: Access) -> MountPlan {
        let mount = Mount {
            bucket: &"sandyard".parse().expect("valid"),
            prefix: &prefix.parse().expect("valid"),
            access,
            driver: MountDriver::S3fs,
            uid: 1000,
            gid: 1001,
            cache: Cache::Disk { limit_mib: 1024 },
        };
        let credentials = Credentials {
            endpoint: "http://172.17.0.1:3003",
            access_key_id: "key",
            secret_access_key: &Secret::new("hush"),
        };
        plan(&mount, &credentials, MountPaths { mount_point: "/mnt/0", cache: "/tmp/0" })
    }

    #[test]
    fn the_secret_is_in_the_key_file_and_nowhere_else() {
        let plan = planned("sessions/a/", Access::ReadWrite);
        assert_eq!(plan.key.content.reveal(), "key:hush\n");
        assert!(!plan.arguments.iter().any(|argument| argument.contains("hush")));
        assert!(!format!("{plan:?}").contains("hush"));
    }

    #[test]
    fn the_mount_table_names_bucket_and_prefix() {
        let plan = planned("sessions/a/", Access::ReadWrite);
        assert_eq!(plan.source, "sandyard:/sessions/a");
        assert_eq!(plan.arguments[..4], ["sandyard:/sessions/a", "/mnt/0", "-f", "-o"]);
        assert!(plan.arguments[4].contains("fsname=sandyard:/sessions/a,subtype=s3fs"));
    }

    #[test]
    fn a_prefix_cannot_add_options() {
        let plan = planned("a,allow_root\\,b/", Access::ReadWrite);
        assert!(plan.arguments[4].contains("fsname=sandyard:/a\\,allow_root\\\\\\,b,"));
    }

    #[test]
    fn no_open_trusts_what_an_earlier_one_has_loaded() {
        assert_eq!(planned("a/", Access::ReadWrite).sealed, [".sandyard.stat"]);
    }

    #[test]
    fn the_library_is_preloaded() {
        let plan = planned("a/", Access::ReadWrite);
        assert!(plan.environment.contains(&("LD_PRELOAD", plan.preload)));
    }

    #[test]
    fn the_shared_memory_is_what_the_library_expects() {
        use sandyard_s3fs_guard::page as library;

        use crate::page;

        assert_eq!(ATTRIBUTES_LIMIT.as_secs(), sandyard_s3fs_guard::ATTRIBUTES_SECS);
        let offset = |at: usize| u64::try_from(at).expect("small");
        assert_eq!(page::DESCRIPTOR, library::DESCRIPTOR);
        assert_eq!(page::BYTES, offset(library::BYTES));
        assert_eq!(page::UNSENT_AT, offset(library::UNSENT_AT));
        assert_eq!(page::LOST_AT, offset(library::LOST_AT));
        assert_eq!(page::CLOCK_AHEAD_AT, offset(library::CLOCK_AHEAD_AT));
    }

    #[test]
    fn a_small_cache_gets_small_transfers() {
        let of = |size_mib| transfers(Cache::Tmpfs { size_mib });
        assert!(of(100).ends_with("parallel_count=4,multipart_size=10"));
        assert!(of(30).ends_with("parallel_count=1,multipart_size=10"));
        assert_eq!(of(1000), transfers(Cache::Disk { limit_mib: 10 }));
    }

    #[test]
    fn only_a_read_only_mount_says_ro() {
        let ro = |access| planned("a/", access).arguments[4].split(',').any(|o| o == "ro");
        assert!(ro(Access::ReadOnly));
        assert!(!ro(Access::ReadWrite));
    }
}
