//! The bytes of a file: mapped, or read into memory.
//!
//! A map costs nothing until a page is used, and several processes share it. Its price is that the file must stay as it
//! is. The lengths and offsets that are used come from the header, which is read once, so a file that is changed in place
//! gives wrong weights, and formally a data race. A page of a file that was truncated, or whose disk fails, cannot be read
//! at all: the system sends SIGBUS. No check beforehand can exclude that, since the file may shrink a moment later, so
//! [`exit_on_unreadable_page`] handles the signal. [`FileAccess::Read`] avoids all of it at the price of memory.

use crate::ImportError;
use bytemuck::{Pod, Zeroable};
use bytes::Bytes;
use memmap2::Mmap;
use std::{fs::File, io::Read, ops::Range, path::Path, sync::Arc};

/// How the bytes of a file are accessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FileAccess {
    /// Through a memory map. The file must not be changed while it is open.
    #[default]
    Map,
    /// By a copy in memory, made when the file is opened. The file may be changed or removed afterwards.
    Read,
}

/// The bytes of an open file.
pub(crate) struct FileBytes {
    pub(crate) bytes: Bytes,
    /// The map behind `bytes`; `None` for bytes in memory.
    map: Option<Arc<RegisteredMap>>,
}

impl FileBytes {
    pub(crate) fn open(path: &Path, access: FileAccess) -> Result<Self, ImportError> {
        let error = |source| ImportError::Open { file: path.to_owned(), source };
        let file = File::open(path).map_err(error)?;
        match access {
            FileAccess::Map => {
                let map = Arc::new(RegisteredMap::new(&file, path).map_err(error)?);
                Ok(Self { bytes: Bytes::from_owner(SharedMap(map.clone())), map: Some(map) })
            }
            FileAccess::Read => {
                Ok(Self { bytes: Bytes::from_owner(AlignedBytes::read(file).map_err(error)?), map: None })
            }
        }
    }

    pub(crate) fn in_memory(bytes: Bytes) -> Self {
        Self { bytes, map: None }
    }

    /// Drops pages from memory. They are read from the file again when they are used.
    pub(crate) fn forget(&self, part: Range<usize>) {
        #[cfg(unix)]
        if let Some(map) = &self.map {
            // SAFETY: the map is of a file and read-only, so dropped pages hold nothing that the file does not, and are read
            // again when touched. A failure only leaves them in memory.
            let _ =
                unsafe { map.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, part.start, part.len()) };
        }
    }

    /// What reads a part ahead, in large pages; `None` for bytes in memory.
    #[cfg(target_os = "linux")]
    pub(crate) fn reader_ahead(&self, part: Range<usize>) -> Option<impl FnOnce() + Send + use<>> {
        let map = self.map.clone()?;
        // Where it fails, as before Linux 5.14, pages are read when they are touched.
        Some(move || drop(map.map.advise_range(memmap2::Advice::PopulateRead, part.start, part.len())))
    }
}

/// A map that [`exit_on_unreadable_page`] knows by its address.
struct RegisteredMap {
    map: Mmap,
}

impl RegisteredMap {
    fn new(file: &File, path: &Path) -> std::io::Result<Self> {
        // SAFETY: the map is read-only and private to this process. What happens if another process changes the file is
        // said at the head of this module.
        let map = unsafe { Mmap::map(file) }?;
        // Weights are read from end to end for every token: pages of 2 MiB, where the system has them for files, save
        // looking up those of 4 KiB, some 6 % of the time. A refusal changes nothing else.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        #[cfg(unix)]
        unreadable::register(&map, path);
        #[cfg(not(unix))]
        let _ = path;
        Ok(Self { map })
    }
}

impl Drop for RegisteredMap {
    fn drop(&mut self) {
        #[cfg(unix)]
        unreadable::unregister(&self.map);
    }
}

/// Keeps the file mapped as long as its bytes are in use.
struct SharedMap(Arc<RegisteredMap>);

impl AsRef<[u8]> for SharedMap {
    fn as_ref(&self) -> &[u8] {
        &self.0.map
    }
}

/// Bytes at an address as aligned as a container's tensors are in their file.
struct AlignedBytes {
    lines: Vec<Line>,
    len: usize,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl AlignedBytes {
    /// The whole file, as long as the file system says it is.
    fn read(mut file: File) -> std::io::Result<Self> {
        let len = file.metadata()?.len();
        let len = usize::try_from(len).map_err(|_| std::io::ErrorKind::FileTooLarge)?;
        let mut lines = Vec::new();
        lines.try_reserve_exact(len.div_ceil(size_of::<Line>())).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
        lines.resize(len.div_ceil(size_of::<Line>()), Line::zeroed());
        file.read_exact(&mut bytemuck::cast_slice_mut(&mut lines)[..len])?;
        Ok(Self { lines, len })
    }
}

impl AsRef<[u8]> for AlignedBytes {
    fn as_ref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

/// Ends the process with status 1 and one line that names the file when a page of a mapped file cannot be read, in place of
/// death by SIGBUS; `advice` ends the line. For programs, which may call it once; a library leaves signals to its program.
/// Without effect on systems without this signal.
pub fn exit_on_unreadable_page(advice: &'static str) {
    #[cfg(unix)]
    unreadable::handle(advice);
    #[cfg(not(unix))]
    let _ = advice;
}

#[cfg(unix)]
mod unreadable {
    use libc::{SA_ONSTACK, SA_SIGINFO, SIGBUS, STDERR_FILENO, c_int, c_void, sigaction, siginfo_t};
    use std::{
        hint::spin_loop,
        mem::MaybeUninit,
        ops::Range,
        os::unix::ffi::OsStrExt,
        path::{Path, PathBuf},
        ptr,
        sync::{Mutex, MutexGuard, OnceLock, TryLockError},
    };

    /// Address ranges of all maps, and their files. Whoever holds the lock touches no mapped page, so the handler never
    /// waits for the thread that it interrupted.
    static MAPS: Mutex<Vec<(Range<usize>, PathBuf)>> = Mutex::new(Vec::new());

    struct Handler {
        advice: &'static str,
        /// The action before ours: Rust's own, which tells of a stack overflow.
        previous: sigaction,
    }

    static HANDLER: OnceLock<Handler> = OnceLock::new();

    fn range(map: &[u8]) -> Range<usize> {
        let start = map.as_ptr() as usize;
        start..start + map.len()
    }

    fn maps() -> MutexGuard<'static, Vec<(Range<usize>, PathBuf)>> {
        loop {
            match MAPS.try_lock() {
                Ok(maps) => return maps,
                Err(TryLockError::Poisoned(maps)) => return maps.into_inner(),
                Err(TryLockError::WouldBlock) => spin_loop(),
            }
        }
    }

    pub(super) fn register(map: &[u8], path: &Path) {
        let entry = (range(map), path.to_owned());
        maps().push(entry);
    }

    pub(super) fn unregister(map: &[u8]) {
        let range = range(map);
        maps().retain(|(other, _)| *other != range);
    }

    pub(super) fn handle(advice: &'static str) {
        let on_signal: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_signal;
        let mut previous = MaybeUninit::<sigaction>::zeroed();
        // SAFETY: both actions are valid for the call; zeros are a valid `sigaction`. The handler calls only what is safe in
        // one: it allocates nothing, and the lock that it takes is never held by the thread that it interrupts.
        let previous = unsafe {
            if sigaction(SIGBUS, ptr::null(), previous.as_mut_ptr()) != 0 {
                return;
            }
            previous.assume_init()
        };
        if HANDLER.set(Handler { advice, previous }).is_err() {
            return;
        }
        // SAFETY: as above.
        unsafe {
            let mut action = MaybeUninit::<sigaction>::zeroed().assume_init();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = SA_SIGINFO | SA_ONSTACK;
            sigaction(SIGBUS, &action, ptr::null_mut());
        }
    }

    extern "C" fn on_signal(_: c_int, info: *mut siginfo_t, _: *mut c_void) {
        let handler = HANDLER.get().expect("set before the handler is installed");
        // SAFETY: with SA_SIGINFO the system passes a valid `siginfo_t`, which has an address for SIGBUS.
        let address = unsafe { (*info).si_addr() } as usize;
        let maps = maps();
        let Some((_, path)) = maps.iter().find(|(range, _)| range.contains(&address)) else {
            // Not ours. The instruction runs again when this returns, and the action before this one sees the signal.
            // SAFETY: the action was read from the system.
            unsafe { sigaction(SIGBUS, &handler.previous, ptr::null_mut()) };
            return;
        };
        let name = path.as_os_str().as_bytes();
        let why = b": a part of this file can no longer be read: it was truncated while in use, or its disk fails";
        for part in [b"qins: ", name, why, handler.advice.as_bytes(), b"\n"] {
            // SAFETY: the slice is valid. Nothing can be done about a failure.
            let _ = unsafe { libc::write(STDERR_FILENO, part.as_ptr().cast(), part.len()) };
        }
        // SAFETY: ends the process without running code that is not safe in a handler.
        unsafe { libc::_exit(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_read_may_change_afterwards() {
        let directory = tempfile::tempdir().unwrap();
        for len in [0usize, 1, 63, 64, 1000] {
            let contents: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let path = directory.path().join(len.to_string());
            std::fs::write(&path, &contents).unwrap();
            let mapped = (len > 0).then(|| FileBytes::open(&path, FileAccess::Map).unwrap().bytes);
            assert!(mapped.is_none_or(|mapped| mapped == contents));
            let read = FileBytes::open(&path, FileAccess::Read).unwrap();
            std::fs::write(&path, vec![255; len]).unwrap();
            assert_eq!(read.bytes, contents);
            assert_eq!(read.bytes.as_ptr() as usize % 64, 0);
            read.forget(0..len);
            assert_eq!(read.bytes, contents);
        }
    }
}
