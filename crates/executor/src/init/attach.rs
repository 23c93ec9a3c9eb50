//! Putting a mount where users see it (design 6.1 (6)), and taking it away.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, mkdirat, openat2};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree};
use sandyard_contract::control::MountCall;

/// Mounts what is on `mount_point` at the target of `call` as well, and returns that second mount. The
/// target is found below `image` without following any link, then only its descriptor is used; what is
/// missing of it is created with the mount's owner.
pub(super) fn attach(
    image: BorrowedFd<'_>,
    call: &MountCall,
    mount_point: &str,
) -> io::Result<OwnedFd> {
    let target = resolve(image, call)?;
    let tree = clone(mount_point)?;
    move_mount(&tree, "", &target, "", BY_DESCRIPTOR)?;
    Ok(tree)
}

/// Like [`attach`] with `previous`, a mount whose program is gone, at the target. Where the kernel can put
/// a mount below another one, nobody sees the directory under both.
pub(super) fn replace(
    image: BorrowedFd<'_>,
    call: &MountCall,
    mount_point: &str,
    previous: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    let tree = clone(mount_point)?;
    let beneath = BY_DESCRIPTOR | MoveMountFlags::MOVE_MOUNT_BENEATH;
    let placed = move_mount(&tree, "", previous, "", beneath);
    unmount(previous)?;
    match placed {
        Ok(()) => Ok(tree),
        // An older kernel, or the old mount is not there any more.
        Err(_) => attach(image, call, mount_point),
    }
}

/// Both ends of a move are given as descriptors.
const BY_DESCRIPTOR: MoveMountFlags =
    MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH.union(MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH);

fn clone(mount_point: &str) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(CWD, mount_point, flags)?)
}

fn resolve(image: BorrowedFd<'_>, call: &MountCall) -> io::Result<OwnedFd> {
    let mut directory = image.try_clone_to_owned()?;
    for name in call.target.as_str().split('/').filter(|name| !name.is_empty()) {
        directory = match open_below(&directory, name) {
            Err(Errno::NOENT) => create(&directory, name, call)?,
            opened => opened.map_err(|error| explain(error, name))?,
        };
    }
    Ok(directory)
}

fn create(parent: &OwnedFd, name: &str, call: &MountCall) -> io::Result<OwnedFd> {
    let mode = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
    match mkdirat(parent, name, mode) {
        // User code was faster: the directory is its own.
        Err(Errno::EXIST) => return open_below(parent, name).map_err(|e| explain(e, name)),
        made => made?,
    }
    let directory = open_below(parent, name).map_err(|error| explain(error, name))?;
    let (owner, group) = (Uid::from_raw(call.uid), Gid::from_raw(call.gid));
    chownat(&directory, "", Some(owner), Some(group), AtFlags::EMPTY_PATH)?;
    Ok(directory)
}

fn open_below(directory: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(directory, name, flags, Mode::empty(), resolve)
}

fn explain(error: Errno, name: &str) -> io::Error {
    let what = match error {
        Errno::LOOP => format!("'{name}' is a symbolic link, which mounts do not follow"),
        Errno::NOTDIR => format!("'{name}' is no directory"),
        _ => format!("'{name}': {}", io::Error::from(error)),
    };
    io::Error::new(io::Error::from(error).kind(), what)
}

/// Unmounts an attached mount by its descriptor: user code may have renamed the path to it.
pub(super) fn unmount(mount: impl AsFd) -> io::Result<()> {
    let path = format!("/proc/self/fd/{}", mount.as_fd().as_raw_fd());
    ignore_absent(rustix::mount::unmount(path, UnmountFlags::DETACH))
}

/// Unmounts everything from a program's own mount point.
pub(super) fn unmount_all(mount_point: &str) -> io::Result<()> {
    loop {
        match rustix::mount::unmount(mount_point, UnmountFlags::DETACH) {
            Ok(()) => {}
            error => return ignore_absent(error),
        }
    }
}

fn ignore_absent(result: Result<(), Errno>) -> io::Result<()> {
    match result {
        // Not a mount (any more), or not even a directory.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
