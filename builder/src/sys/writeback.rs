//! Writing to disk early, so that making a file durable in the end does not take long.
#![expect(unsafe_code, reason = "rustix lacks sync_file_range")]

use std::os::fd::{AsFd, AsRawFd as _};

/// Asks the kernel to begin writing a stretch of a file to disk; nothing is waited for, and nothing
/// is promised. Where it does not work, the file is written later.
pub fn begin(file: impl AsFd, start: u64, length: u64) {
    let (Ok(start), Ok(length)) = (i64::try_from(start), i64::try_from(length)) else {
        return;
    };
    // SAFETY: the call takes numbers only, and the descriptor is open for as long as it is borrowed.
    unsafe {
        libc::sync_file_range(
            file.as_fd().as_raw_fd(),
            start,
            length,
            libc::SYNC_FILE_RANGE_WRITE,
        );
    }
}
