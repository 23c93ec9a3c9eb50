//! Capabilities: an allow-list, so that whatever else the engine gave goes too (design 6.1 (5)).

use std::io;

use anyhow::{Context as _, bail};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
};

/// What root inside keeps: enough for sudo, su, package installs and servers on low ports. Not
/// SYS_ADMIN, not MKNOD (device nodes), not NET_RAW (it reads the FUSE program's traffic).
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE);

/// Cuts all five sets of this process: bounding, permitted and effective to [`KEPT`], inheritable and
/// ambient to nothing.
pub(super) fn cut_to_allow_list() -> io::Result<()> {
    // The sets have 64 bits; the kernel says EINVAL at the first number it does not know.
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(capability) {
            Ok(true) if !KEPT.contains(capability) => {
                remove_capability_from_bounding_set(capability)?;
            }
            Ok(_) => {}
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    clear_ambient_capability_set()?;
    let permitted = capabilities(None)?.permitted & KEPT;
    let inheritable = CapabilitySet::empty();
    Ok(set_capabilities(None, CapabilitySets { effective: permitted, permitted, inheritable })?)
}

/// Fails with the name of what is missing for mounts.
pub(super) fn require_for_mounts() -> anyhow::Result<()> {
    let effective = capabilities(None).context("failed to read capabilities")?.effective;
    let needed = [
        ("SYS_ADMIN", CapabilitySet::SYS_ADMIN),
        ("SYS_CHROOT", CapabilitySet::SYS_CHROOT),
        ("SETPCAP", CapabilitySet::SETPCAP),
    ];
    for (name, capability) in needed {
        if !effective.contains(capability) {
            bail!("a sandbox with a workspace needs the capability {name}, and this one lacks it");
        }
    }
    Ok(())
}
