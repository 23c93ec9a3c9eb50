//! The real s3fs, mounted on the gateway.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tempfile::TempDir;

use crate::client::{S3Client, noise};
use crate::host::{BUCKET, GatewayHost, bucket};

struct S3fsMount {
    folder: TempDir,
}

impl S3fsMount {
    fn new(client: &S3Client, prefix: &str) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let (target, keys) = (folder.path().join("mnt"), folder.path().join("keys"));
        fs::create_dir(&target)?;
        let mut file =
            fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&keys)?;
        writeln!(file, "{}:{}", client.id, client.secret)?;
        let options = format!(
            "url={},use_path_request_style,passwd_file={},use_cache={},ensure_diskfree=20,\
             multireq_max=32,parallel_count=8,multipart_size=16,stat_cache_expire=5,retries=5,\
             connect_timeout=5",
            client.endpoint,
            keys.display(),
            folder.path().join("cache").display(),
        );
        let source = format!("{BUCKET}:/{}", prefix.trim_end_matches('/'));
        let status = Command::new("s3fs").arg(source).arg(&target).args(["-o", &options]).status();
        ensure!(status.context("cannot start s3fs")?.success(), "s3fs failed");
        let mount = Self { folder };
        let limit = Instant::now() + Duration::from_secs(10);
        while !is_mounted(&target)? {
            ensure!(Instant::now() < limit, "s3fs did not mount within 10 s");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(mount)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("mnt").join(name)
    }

    fn unmount(self) -> anyhow::Result<()> {
        let target = self.path("");
        let status = Command::new("fusermount").arg("-u").arg(&target).status()?;
        ensure!(status.success(), "cannot unmount {}", target.display());
        Ok(())
    }
}

impl Drop for S3fsMount {
    fn drop(&mut self) {
        let target = self.path("");
        if is_mounted(&target).unwrap_or(false) {
            let unmounted = Command::new("fusermount").args(["-u", "-z"]).arg(&target).status();
            if let Err(error) = unmounted {
                eprintln!("cannot unmount {}: {error}", target.display());
            }
        }
    }
}

fn is_mounted(target: &Path) -> anyhow::Result<bool> {
    let target = target.to_string_lossy();
    let target = target.trim_end_matches('/');
    let mounts = fs::read_to_string("/proc/mounts")?;
    Ok(mounts.lines().any(|line| line.split(' ').nth(1) == Some(target)))
}

fn work(mount: &S3fsMount, big: &[u8]) -> anyhow::Result<()> {
    ensure!(mount.path("uploads").is_dir(), "the prepared directory is not there");
    fs::create_dir(mount.path("dir"))?;
    fs::write(mount.path("dir/a.txt"), "one\n")?;
    fs::rename(mount.path("dir/a.txt"), mount.path("dir/b ü%.txt"))?;
    ensure!(!mount.path("dir/a.txt").exists());
    fs::rename(mount.path("dir"), mount.path("moved"))?;
    let file = mount.path("moved/b ü%.txt");
    let mut append = fs::OpenOptions::new().append(true).open(&file)?;
    append.write_all(b"two\n")?;
    drop(append);
    ensure!(fs::read(&file)? == b"one\ntwo\n");
    let open = fs::OpenOptions::new().write(true).open(&file)?;
    open.set_len(3)?;
    drop(open);
    ensure!(fs::read(&file)? == b"one");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640))?;
    ensure!(fs::metadata(&file)?.permissions().mode() & 0o777 == 0o640);
    symlink("moved/b ü%.txt", mount.path("link"))?;
    ensure!(fs::read_link(mount.path("link"))? == Path::new("moved/b ü%.txt"));
    ensure!(fs::read(mount.path("link"))? == b"one");
    fs::write(mount.path("empty"), "")?;
    ensure!(fs::metadata(mount.path("empty"))?.len() == 0);
    for number in 0..30 {
        fs::write(mount.path(&format!("moved/{number}")), number.to_string())?;
    }
    ensure!(fs::read_dir(mount.path("moved"))?.count() == 31);
    fs::remove_file(mount.path("moved/7"))?;
    ensure!(fs::read_dir(mount.path("moved"))?.count() == 30);
    fs::write(mount.path("big"), big)?;
    let mut change = fs::OpenOptions::new().write(true).open(mount.path("big"))?;
    change.seek(SeekFrom::Start(100_000_000))?;
    change.write_all(b"changed in the middle")?;
    drop(change);
    fs::rename(mount.path("big"), mount.path("big2"))?;
    Ok(())
}

fn look_again(mount: &S3fsMount, big: &[u8]) -> anyhow::Result<()> {
    ensure!(fs::read(mount.path("moved/b ü%.txt"))? == b"one");
    ensure!(fs::metadata(mount.path("moved/b ü%.txt"))?.permissions().mode() & 0o777 == 0o640);
    ensure!(fs::read(mount.path("moved/29"))? == b"29");
    ensure!(fs::read_link(mount.path("link"))? == Path::new("moved/b ü%.txt"));
    let mut expected = big.to_vec();
    expected[100_000_000..100_000_021].copy_from_slice(b"changed in the middle");
    ensure!(fs::read(mount.path("big2"))? == expected, "200 MB came back changed");
    fs::remove_file(mount.path("big2"))?;
    fs::remove_dir_all(mount.path("moved"))?;
    ensure!(!mount.path("moved").exists());
    Ok(())
}

async fn a_mount_behaves_like_a_directory(host: GatewayHost) -> anyhow::Result<()> {
    let prefix = "sessions/s1/";
    let directories = ["uploads".to_owned(), "artifacts".to_owned()];
    let at = prefix.parse()?;
    host.gateway.ensure_directories(&bucket(), &at, &directories, 0, 0).await?;
    // A neighbour that the mount must neither show nor touch.
    let owner = host.owner();
    owner.put(&format!("/{BUCKET}/sessions/s10/x"), b"neighbour").await?.expect(200);
    let client = host.session(prefix);
    // File calls on the mount block until this very process has answered: never on its own threads.
    tokio::task::spawn_blocking(move || {
        let big = noise(200 * 1000 * 1000, 9);
        let mount = S3fsMount::new(&client, prefix)?;
        work(&mount, &big)?;
        mount.unmount()?;
        let mount = S3fsMount::new(&client, prefix)?;
        look_again(&mount, &big)?;
        mount.unmount()
    })
    .await??;
    let left = owner.get(&format!("/{BUCKET}?prefix=sessions/")).await?.expect(200);
    let expected = [
        "sessions/s1/",
        "sessions/s1/artifacts/",
        "sessions/s1/empty",
        "sessions/s1/link",
        "sessions/s1/uploads/",
        "sessions/s10/x",
    ];
    assert_eq!(left.elements("Key"), expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs s3fs and /dev/fuse"]
async fn on_the_embedded_store() -> anyhow::Result<()> {
    a_mount_behaves_like_a_directory(GatewayHost::embedded().await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs minio, s3fs and /dev/fuse"]
async fn on_minio() -> anyhow::Result<()> {
    a_mount_behaves_like_a_directory(GatewayHost::minio().await?).await
}
