//! ELF to flat image: what `-kernel` and `guest-loader` put into memory as it is.

use object::LittleEndian;
use object::elf::{EM_AARCH64, FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use thiserror::Error;

/// Most bytes of a flat image; a linker script that leaves a hole would make more.
const MAX_BYTES: u64 = 32 << 20;
/// Offset in bytes of the magic in an arm64 Image header (Linux, `booting.rst`).
const MAGIC_OFFSET: usize = 56;
/// That magic.
const MAGIC: &[u8] = b"ARM\x64";

/// Why a file is not made into an image.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The ELF file itself is malformed.
    #[error("not a readable ELF file: {0}")]
    Elf(#[from] object::Error),
    /// It is for another machine.
    #[error("built for ELF machine {0:?}, not for AArch64")]
    Machine(object::elf::Machine),
    /// Nothing is to be loaded.
    #[error("no segment to load")]
    Empty,
    /// The segments span more than an image may.
    #[error("segments span {0:#x} bytes, more than {MAX_BYTES:#x}: check the linker script")]
    TooLarge(u64),
    /// A segment lies outside the file or the address space.
    #[error("the segment at physical address {0:#x} is cut off")]
    Segment(u64),
    /// The payload does not start with an arm64 Image header.
    #[error("no arm64 Image header at the start: `ARM\\x64` is missing at offset 56")]
    NoHeader,
}

/// A flat image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Physical address that it was linked for.
    pub base: u64,
    /// Its bytes, zero-initialised memory included.
    pub bytes: Vec<u8>,
}

/// One segment to load.
struct Segment<'a> {
    address: u64,
    memory: u64,
    data: &'a [u8],
}

impl Image {
    /// Lays out the loadable segments of `elf` by physical address.
    ///
    /// # Errors
    /// Every [`ImageError`] but [`ImageError::NoHeader`].
    pub fn flatten(elf: &[u8]) -> Result<Self, ImageError> {
        let segments = segments(elf)?;
        let base = segments.iter().map(|s| s.address).min().ok_or(ImageError::Empty)?;
        let mut end = base;
        for segment in &segments {
            let last = segment.address.checked_add(segment.memory);
            end = end.max(last.ok_or(ImageError::Segment(segment.address))?);
        }
        let size = end - base;
        let length = usize::try_from(size).ok().filter(|_| size <= MAX_BYTES);
        let mut bytes = vec![0; length.ok_or(ImageError::TooLarge(size))?];
        for segment in &segments {
            let cut = || ImageError::Segment(segment.address);
            let start = usize::try_from(segment.address - base).map_err(|_| cut())?;
            let end = start.checked_add(segment.data.len()).ok_or_else(cut)?;
            bytes.get_mut(start..end).ok_or_else(cut)?.copy_from_slice(segment.data);
        }
        Ok(Self { base, bytes })
    }

    /// Checks that this is an arm64 Image, as `-kernel` wants it.
    ///
    /// # Errors
    /// [`ImageError::NoHeader`].
    pub fn check_header(&self) -> Result<(), ImageError> {
        match self.bytes.get(MAGIC_OFFSET..MAGIC_OFFSET + MAGIC.len()) {
            Some(found) if found == MAGIC => Ok(()),
            Some(_) | None => Err(ImageError::NoHeader),
        }
    }
}

fn segments(elf: &[u8]) -> Result<Vec<Segment<'_>>, ImageError> {
    let header = FileHeader64::<LittleEndian>::parse(elf)?;
    let endian = header.endian()?;
    let machine = header.e_machine(endian);
    if machine != EM_AARCH64 {
        return Err(ImageError::Machine(machine));
    }
    let mut segments = Vec::new();
    for entry in header.program_headers(endian, elf)? {
        let (address, memory) = (entry.p_paddr(endian), entry.p_memsz(endian));
        if entry.p_type(endian) != PT_LOAD || memory == 0 {
            continue;
        }
        let data = entry.data(endian, elf).map_err(|()| ImageError::Segment(address))?;
        segments.push(Segment { address, memory, data });
    }
    Ok(segments)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of an ELF header and of a program header.
    const EHDR: usize = 64;
    const PHDR: usize = 56;

    /// Writes an ELF file with one `PT_LOAD` segment per (address, data, memory size).
    fn elf(machine: u16, segments: &[(u64, &[u8], u64)]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend([2u16, machine].map(u16::to_le_bytes).concat());
        file.extend(1u32.to_le_bytes());
        file.extend([0, 64u64, 0].map(u64::to_le_bytes).concat());
        file.extend(0u32.to_le_bytes());
        let count = u16::try_from(segments.len()).unwrap();
        file.extend([64, 56, count, 0, 0, 0].map(u16::to_le_bytes).concat());
        let mut offset = EHDR + PHDR * segments.len();
        for (address, data, memory) in segments {
            file.extend([1u32, 7].map(u32::to_le_bytes).concat());
            let (start, length) = (offset.try_into().unwrap(), data.len().try_into().unwrap());
            let words = [start, *address, *address, length, *memory, 1];
            file.extend(words.map(u64::to_le_bytes).concat());
            offset += data.len();
        }
        for (_, data, _) in segments {
            file.extend(*data);
        }
        file
    }

    #[test]
    fn segments_lie_where_their_physical_address_says_and_bss_is_zero() {
        let file = elf(183, &[(0x4020_1000, b"text", 8), (0x4020_0000, b"head", 4)]);
        let image = Image::flatten(&file).unwrap();
        assert_eq!(image.base, 0x4020_0000);
        assert_eq!(image.bytes.len(), 0x1008);
        assert_eq!(&image.bytes[..5], b"head\0");
        assert_eq!(&image.bytes[0x1000..], b"text\0\0\0\0");
    }

    #[test]
    fn what_is_no_image_is_refused_with_the_reason() {
        assert!(matches!(Image::flatten(b"no"), Err(ImageError::Elf(_))));
        assert!(matches!(Image::flatten(&elf(62, &[])), Err(ImageError::Machine(_))));
        assert!(matches!(Image::flatten(&elf(183, &[])), Err(ImageError::Empty)));
        let hole = elf(183, &[(0, b"a", 1), (0x4020_0000, b"b", 1)]);
        assert!(matches!(Image::flatten(&hole), Err(ImageError::TooLarge(0x4020_0001))));
        let wrap = elf(183, &[(u64::MAX, b"a", 2)]);
        assert!(matches!(Image::flatten(&wrap), Err(ImageError::Segment(u64::MAX))));
    }

    #[test]
    fn an_arm64_image_is_known_by_its_magic() {
        let mut image = Image { base: 0, bytes: vec![0; 64] };
        assert!(image.check_header().is_err());
        image.bytes[56..60].copy_from_slice(b"ARM\x64");
        assert!(image.check_header().is_ok());
    }
}
