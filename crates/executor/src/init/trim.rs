//! Trims the memory of `init` while nothing happens: `init` waits in every sandbox with a workspace, mostly
//! for nothing.

use std::ffi::c_void;
use std::ptr;

/// Takes this process's program text and constants out of its memory, and free heap as well. They stay in
/// the page cache, which all sandboxes share, and come back at first use.
pub(super) fn trim_memory() {
    // SAFETY: `trim_program` is a callback as dl_iterate_phdr wants it and ignores the data.
    #[allow(unsafe_code)]
    unsafe {
        libc::dl_iterate_phdr(Some(trim_program), ptr::null_mut());
    }
    // SAFETY: it only gives back memory that nobody has allocated.
    #[allow(unsafe_code)]
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Does it for the parts of one loaded object that are never written to.
#[allow(unsafe_code)]
unsafe extern "C" fn trim_program(
    object: *mut libc::dl_phdr_info,
    _size: usize,
    _data: *mut c_void,
) -> i32 {
    let page = rustix::param::page_size();
    // SAFETY: the caller gives a good description of a loaded object, with that many headers.
    let (base, headers) = unsafe {
        let object = &*object;
        (object.dlpi_addr, std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()))
    };
    for header in headers {
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let Ok(start) = usize::try_from(base + header.p_vaddr) else { continue };
        let Ok(length) = usize::try_from(header.p_memsz) else { continue };
        let (first, end) = (start.next_multiple_of(page), (start + length) / page * page);
        if first < end {
            let first = ptr::with_exposed_provenance_mut::<c_void>(first);
            // SAFETY: whole pages of a private mapping that was never written to: the kernel maps the
            // same content from the file again. A failure costs nothing but memory.
            unsafe { libc::madvise(first, end - first.addr(), libc::MADV_DONTNEED) };
        }
    }
    0
}
