//! A writer of tar archives (POSIX.1-1988 "ustar"), the form of image layers and of image files.
//!
//! The same entries give the same bytes: owner, group and times are zero.

/// Size of a header, and what content is padded to, in bytes.
const BLOCK: usize = 512;
/// The longest name without the prefix field, which nothing here needs.
const MAX_NAME: usize = 100;

/// An archive being written, in memory.
#[derive(Default)]
pub(super) struct Tar {
    bytes: Vec<u8>,
}

impl Tar {
    /// Adds a folder; its name begins without a slash.
    pub(super) fn folder(&mut self, name: &str, mode: u32) {
        let name = format!("{}/", name.trim_end_matches('/'));
        self.header(&name, mode, 0, b'5');
    }

    /// Adds a file; its name begins without a slash.
    pub(super) fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.header(name, mode, content.len(), b'0');
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
    }

    /// The whole archive.
    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        // Two empty blocks are the end.
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }

    fn header(&mut self, name: &str, mode: u32, size: usize, kind: u8) {
        assert!(name.len() <= MAX_NAME, "the names are this program's own and short: {name}");
        let mut header = [0; BLOCK];
        let mut put = |at: usize, field: &[u8]| header[at..at + field.len()].copy_from_slice(field);
        put(0, name.as_bytes());
        put(100, format!("{mode:07o}").as_bytes());
        put(108, b"0000000");
        put(116, b"0000000");
        put(124, format!("{size:011o}").as_bytes());
        put(136, b"00000000000");
        // The checksum is taken with spaces in its own field.
        put(148, b"        ");
        put(156, &[kind]);
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&header);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    use super::*;

    /// What the machine's own tar makes of an archive.
    fn tar(arguments: &[&str], archive: &[u8]) -> String {
        let mut tar = Command::new("tar");
        tar.args(arguments).env("LC_ALL", "C").env("TZ", "UTC").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = tar.spawn().unwrap();
        child.stdin.take().unwrap().write_all(archive).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn tar_lists_what_was_written() {
        let mut archive = Tar::default();
        archive.folder("tmp", 0o1777);
        archive.file("etc/passwd", 0o644, b"root:x:0:0::/root:/none\n");
        archive.file("empty", 0o755, b"");
        let listed = tar(&["--numeric-owner", "-tvf", "-"], &archive.into_bytes());
        let lines: Vec<_> = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
        let shown: Vec<_> = lines.iter().map(|words| (words[0], words[1], words[2], words[5])).collect();
        assert_eq!(
            shown,
            [
                ("drwxrwxrwt", "0/0", "0", "tmp/"),
                ("-rw-r--r--", "0/0", "24", "etc/passwd"),
                ("-rwxr-xr-x", "0/0", "0", "empty"),
            ]
        );
    }

    #[test]
    fn content_of_any_length_comes_back() {
        for length in [1, 511, 512, 513, 2000] {
            let content: String = ('a'..='z').cycle().take(length).collect();
            let mut archive = Tar::default();
            archive.file("before", 0o644, b"x");
            archive.file("it", 0o644, content.as_bytes());
            archive.file("after", 0o644, b"y");
            assert_eq!(tar(&["-xOf", "-", "it"], &archive.into_bytes()), content);
        }
    }
}
