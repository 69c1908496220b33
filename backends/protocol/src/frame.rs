//! Frames: how a message travels over the pipe.
//!
//! ```text
//! offset  size  meaning
//!      0     4  magic, the bytes "DGF1"
//!      4     4  length of the header in bytes, little-endian
//!      8     8  length of the payload in bytes, little-endian
//!     16     …  header: one JSON object, UTF-8
//!      …     …  payload: safetensors, or nothing
//! ```
//!
//! The magic tells a frame from text that native code printed; the limits keep a corrupted length
//! from becoming an allocation.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"DGF1";
/// Longest header that is accepted, in bytes.
pub const MAX_HEADER: u32 = 16 << 20;
/// Longest payload that is accepted, in bytes.
pub const MAX_PAYLOAD: u64 = 8 << 30;

/// Why a frame could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The pipe ended inside a frame.
    #[error("the pipe ended after {got} of {expected} bytes of a frame's {part}")]
    Truncated {
        /// `preamble`, `header` or `payload`.
        part: &'static str,
        /// Bytes that were read.
        got: u64,
        /// Bytes that the part should have.
        expected: u64,
    },
    /// The bytes on the pipe are not a frame.
    #[error("expected a frame, found the bytes {found:?}")]
    NotAFrame {
        /// The first bytes found, as text with escapes.
        found: String,
    },
    /// A length is beyond its limit.
    #[error("a frame's {part} claims {length} bytes, the limit is {limit}")]
    TooLong {
        /// `header` or `payload`.
        part: &'static str,
        /// The claimed length in bytes.
        length: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The header is not the JSON that was expected.
    #[error("a frame's header is not understood")]
    Header(#[source] serde_json::Error),
    /// The pipe itself failed.
    #[error("the pipe failed")]
    Io(#[from] io::Error),
}

/// Writes one frame and flushes.
///
/// # Errors
/// Whatever the pipe returns.
pub fn write_frame(
    output: &mut dyn Write,
    header: &impl Serialize,
    payload: &[u8],
) -> io::Result<()> {
    let header = serde_json::to_vec(header)?;
    let header_length = u32::try_from(header.len())
        .ok()
        .filter(|length| *length <= MAX_HEADER)
        .ok_or_else(|| io::Error::other("a frame's header is too long"))?;
    output.write_all(&MAGIC)?;
    output.write_all(&header_length.to_le_bytes())?;
    output.write_all(&(payload.len() as u64).to_le_bytes())?;
    output.write_all(&header)?;
    output.write_all(payload)?;
    output.flush()
}

/// Reads one frame; `None` where the pipe ended cleanly between two frames.
///
/// # Errors
/// [`FrameError`], after which the pipe must not be read again.
pub fn read_frame<T: DeserializeOwned>(
    input: &mut dyn Read,
) -> Result<Option<(T, Vec<u8>)>, FrameError> {
    let mut preamble = [0u8; 16];
    let got = read_up_to(input, &mut preamble)?;
    if got == 0 {
        return Ok(None);
    }
    let shown = got.min(MAGIC.len());
    if preamble[..shown] != MAGIC[..shown] {
        let found = String::from_utf8_lossy(&preamble[..got])
            .escape_debug()
            .to_string();
        return Err(FrameError::NotAFrame { found });
    }
    if got < preamble.len() {
        return Err(FrameError::Truncated {
            part: "preamble",
            got: got as u64,
            expected: preamble.len() as u64,
        });
    }
    let [_, _, _, _, h0, h1, h2, h3, p0, p1, p2, p3, p4, p5, p6, p7] = preamble;
    let header_length = u32::from_le_bytes([h0, h1, h2, h3]);
    let payload_length = u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7]);
    let header = read_part(input, "header", header_length.into(), MAX_HEADER.into())?;
    let payload = read_part(input, "payload", payload_length, MAX_PAYLOAD)?;
    let message = serde_json::from_slice(&header).map_err(FrameError::Header)?;
    Ok(Some((message, payload)))
}

/// Reads exactly `length` bytes. Memory grows with what really arrives, not with what was claimed.
fn read_part(
    input: &mut dyn Read,
    part: &'static str,
    length: u64,
    limit: u64,
) -> Result<Vec<u8>, FrameError> {
    if length > limit {
        return Err(FrameError::TooLong {
            part,
            length,
            limit,
        });
    }
    let mut bytes = Vec::with_capacity(length.min(1 << 20) as usize);
    input.take(length).read_to_end(&mut bytes)?;
    if (bytes.len() as u64) < length {
        return Err(FrameError::Truncated {
            part,
            got: bytes.len() as u64,
            expected: length,
        });
    }
    Ok(bytes)
}

fn read_up_to(input: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match input.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(read) => got += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(header: &str, payload: &[u8]) -> Vec<u8> {
        let value: serde_json::Value = serde_json::from_str(header).unwrap();
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &value, payload).unwrap();
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Option<(serde_json::Value, Vec<u8>)>, FrameError> {
        read_frame(&mut &bytes[..])
    }

    #[test]
    fn a_frame_survives_the_pipe() {
        let mut bytes = frame(r#"{"text":"中国"}"#, b"abc");
        bytes.extend(frame("{}", b""));
        let mut input = &bytes[..];
        let (header, payload) = read_frame::<serde_json::Value>(&mut input)
            .unwrap()
            .unwrap();
        assert_eq!(
            (header["text"].as_str(), &payload[..]),
            (Some("中国"), &b"abc"[..])
        );
        assert!(
            read_frame::<serde_json::Value>(&mut input)
                .unwrap()
                .is_some()
        );
        assert!(
            read_frame::<serde_json::Value>(&mut input)
                .unwrap()
                .is_none()
        );
    }

    /// Each kind of garbage is an error that says what was found; nothing is a panic.
    #[test]
    fn garbage_is_named() {
        let whole = frame("{}", b"abc");
        let mut long = whole.clone();
        long[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        let mut wide = whole.clone();
        wide[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut broken = whole.clone();
        broken[16] = b'x';
        for (bytes, expected) in [
            (
                &b"Intel MKL WARNING: support of "[..],
                "found the bytes \"Intel MKL WARNI",
            ),
            (&b"hi"[..], "found the bytes \"hi\""),
            (
                &whole[..7],
                "ended after 7 of 16 bytes of a frame's preamble",
            ),
            (&whole[..17], "ended after 1 of 2 bytes of a frame's header"),
            (
                &whole[..19],
                "ended after 1 of 3 bytes of a frame's payload",
            ),
            (&long[..], "payload claims 18446744073709551615 bytes"),
            (&wide[..], "header claims 4294967295 bytes"),
            (&broken[..], "header is not understood"),
        ] {
            let message = read(bytes).unwrap_err().to_string();
            assert!(
                message.contains(expected),
                "{message:?} should contain {expected:?}"
            );
        }
    }
}
