//! What the plugin is told.

use pfnguard_oracle::record::BuildId;

/// Everything needed to write a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// Path of the socket.
    pub trace: String,
    /// The image.
    pub build: BuildId,
    /// Where it is loaded.
    pub base: u64,
    /// Bytes of its code.
    pub text: u64,
    /// All its bytes.
    pub image: u64,
    /// Offset of its vectors.
    pub vectors: u64,
    /// Number of vector tables.
    pub tables: u64,
}

impl Arguments {
    /// Reads `key=value` strings; `None` without a trace to write.
    ///
    /// # Errors
    /// An argument is missing or makes no sense.
    pub fn parse(strings: &[String]) -> Result<Option<Self>, String> {
        let get = |key: &str| {
            let mut pairs = strings.iter().filter_map(|string| string.split_once('='));
            pairs.find(|(found, _)| *found == key).map(|(_, value)| value)
        };
        let Some(trace) = get("trace") else { return Ok(None) };
        let number = |key: &str| {
            let text = get(key).ok_or(format!("argument {key}= is missing"))?;
            let digits = text.strip_prefix("0x").ok_or(format!("{key}={text} is not 0x…"))?;
            u64::from_str_radix(digits, 16).map_err(|cause| format!("{key}={text}: {cause}"))
        };
        let build = get("build").and_then(BuildId::parse).ok_or("argument build= is no SHA-256")?;
        Ok(Some(Self {
            trace: trace.to_owned(),
            build,
            base: number("base")?,
            text: number("text")?,
            image: number("image")?,
            vectors: number("vectors")?,
            tables: number("tables")?,
        }))
    }
}
