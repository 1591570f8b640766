//! The few functions of QEMU's plugin interface (`qemu-plugin.h`, API version 4) and of GLib that
//! are used here. QEMU resolves them when it loads the plugin.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::OnceLock;

/// The version of the interface that these declarations follow.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "QEMU looks for this name")]
static qemu_plugin_version: c_int = 4;

/// A plugin's number.
pub type PluginId = u64;
type InsnCallback = extern "C" fn(c_uint, *mut c_void);
type MemCallback = extern "C" fn(c_uint, u32, u64, *mut c_void);

#[repr(C)]
struct RawTb {
    private: [u8; 0],
}

#[repr(C)]
struct RawInsn {
    private: [u8; 0],
}

/// `GArray` and `GByteArray`: the public part is the same.
#[repr(C)]
struct RawArray {
    data: *mut u8,
    len: c_uint,
}

#[repr(C)]
struct RawDescriptor {
    handle: *mut c_void,
    name: *const c_char,
    feature: *const c_char,
}

/// `qemu_plugin_mem_value`: how many bytes, and the bytes.
#[repr(C)]
struct RawValue {
    kind: c_int,
    low: u64,
    high: u64,
}

/// `QEMU_PLUGIN_MEM_VALUE_U64` and `_U128`.
const VALUE_U64: c_int = 3;
const VALUE_U128: c_int = 4;
/// `QEMU_PLUGIN_CB_NO_REGS` and `_R_REGS`.
const CB_NO_REGS: c_int = 0;
const CB_R_REGS: c_int = 1;
/// `QEMU_PLUGIN_MEM_W`.
const MEM_W: c_int = 2;

unsafe extern "C" {
    fn qemu_plugin_register_vcpu_init_cb(id: PluginId, callback: extern "C" fn(PluginId, c_uint));
    fn qemu_plugin_register_vcpu_tb_trans_cb(
        id: PluginId,
        callback: extern "C" fn(PluginId, *mut RawTb),
    );
    fn qemu_plugin_register_atexit_cb(
        id: PluginId,
        callback: extern "C" fn(PluginId, *mut c_void),
        data: *mut c_void,
    );
    fn qemu_plugin_tb_n_insns(tb: *const RawTb) -> usize;
    fn qemu_plugin_tb_get_insn(tb: *const RawTb, index: usize) -> *mut RawInsn;
    fn qemu_plugin_insn_data(insn: *const RawInsn, to: *mut c_void, len: usize) -> usize;
    fn qemu_plugin_insn_vaddr(insn: *const RawInsn) -> u64;
    fn qemu_plugin_insn_haddr(insn: *const RawInsn) -> *mut c_void;
    fn qemu_plugin_register_vcpu_insn_exec_cb(
        insn: *mut RawInsn,
        callback: InsnCallback,
        flags: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_register_vcpu_mem_cb(
        insn: *mut RawInsn,
        callback: MemCallback,
        flags: c_int,
        which: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_mem_get_value(info: u32) -> RawValue;
    fn qemu_plugin_get_registers() -> *mut RawArray;
    fn qemu_plugin_read_register(handle: *mut c_void, buffer: *mut RawArray) -> c_int;
    fn g_byte_array_new() -> *mut RawArray;
    fn g_byte_array_set_size(array: *mut RawArray, len: c_uint) -> *mut RawArray;
    fn g_byte_array_unref(array: *mut RawArray);
    fn g_array_unref(array: *mut RawArray);
}

/// What a plugin does. QEMU calls it from several threads at once.
pub trait Plugin: Send + Sync + 'static {
    /// A CPU exists; its registers can be looked up.
    fn cpu_made(&self, cpu: u32, registers: &Registers);
    /// A block of instructions is being translated.
    fn translate(&self, block: &Block<'_>);
    /// A watched instruction is about to be executed; `mark` is what the watch was given.
    fn executed(&self, cpu: u32, mark: Mark);
    /// A watched instruction at `pc` stored `value`, eight bytes or sixteen.
    fn stored(&self, cpu: u32, pc: u64, address: u64, value: &[u64]);
    /// The machine has ended.
    fn ended(&self);
}

/// A watched instruction: 32 bits and its offset from the first one, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The instruction.
    pub insn: u32,
    /// Bytes from the start of the text.
    pub offset: u32,
}

impl Mark {
    fn to_pointer(self) -> *mut c_void {
        let word = u64::from(self.insn) << 32 | u64::from(self.offset);
        std::ptr::without_provenance_mut(usize::try_from(word).expect("64-bit host"))
    }

    fn from_pointer(pointer: *mut c_void) -> Self {
        let word = u64::try_from(pointer.addr()).expect("64 bits");
        let half = |word: u64| u32::try_from(word & u64::from(u32::MAX)).expect("32 bits");
        Self { insn: half(word >> 32), offset: half(word) }
    }
}

static PLUGIN: OnceLock<Box<dyn Plugin>> = OnceLock::new();

/// Makes QEMU call `plugin`. Only once.
pub fn register(id: PluginId, plugin: Box<dyn Plugin>) {
    if PLUGIN.set(plugin).is_err() {
        return;
    }
    // SAFETY: `id` is the one that QEMU passed for this plugin.
    unsafe { qemu_plugin_register_vcpu_init_cb(id, on_cpu) };
    // SAFETY: as above.
    unsafe { qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation) };
    // SAFETY: as above; the callback ignores its data.
    unsafe { qemu_plugin_register_atexit_cb(id, on_exit, std::ptr::null_mut()) };
}

extern "C" fn on_cpu(_: PluginId, cpu: c_uint) {
    let Some(plugin) = PLUGIN.get() else { return };
    if let Some(registers) = Registers::current() {
        plugin.cpu_made(cpu, &registers);
    }
}

extern "C" fn on_translation(_: PluginId, tb: *mut RawTb) {
    let Some(plugin) = PLUGIN.get() else { return };
    plugin.translate(&Block { tb, life: PhantomData });
}

extern "C" fn on_execution(cpu: c_uint, data: *mut c_void) {
    let Some(plugin) = PLUGIN.get() else { return };
    plugin.executed(cpu, Mark::from_pointer(data));
}

extern "C" fn on_store(cpu: c_uint, info: u32, address: u64, data: *mut c_void) {
    let Some(plugin) = PLUGIN.get() else { return };
    // SAFETY: `info` is that of the store that QEMU reports at this moment.
    let value = unsafe { qemu_plugin_mem_get_value(info) };
    let pc = u64::try_from(data.addr()).expect("64 bits");
    match value.kind {
        VALUE_U64 => plugin.stored(cpu, pc, address, &[value.low]),
        VALUE_U128 => plugin.stored(cpu, pc, address, &[value.low, value.high]),
        _ => {}
    }
}

extern "C" fn on_exit(_: PluginId, _: *mut c_void) {
    if let Some(plugin) = PLUGIN.get() {
        plugin.ended();
    }
}

/// A block that is being translated.
#[derive(Debug)]
pub struct Block<'a> {
    tb: *mut RawTb,
    life: PhantomData<&'a ()>,
}

/// An instruction of it.
#[derive(Debug)]
pub struct Insn<'a> {
    raw: *mut RawInsn,
    life: PhantomData<&'a ()>,
}

impl<'a> Block<'a> {
    /// Returns its instructions.
    pub fn insns(&self) -> impl Iterator<Item = Insn<'a>> {
        let tb = self.tb;
        // SAFETY: QEMU keeps the block for the time of the callback.
        let count = unsafe { qemu_plugin_tb_n_insns(tb) };
        (0..count).map(move |index| {
            // SAFETY: as above; the index is below the count.
            let raw = unsafe { qemu_plugin_tb_get_insn(tb, index) };
            Insn { raw, life: PhantomData }
        })
    }
}

impl Insn<'_> {
    /// Returns its virtual address.
    pub fn address(&self) -> u64 {
        // SAFETY: QEMU keeps the instruction for the time of the callback.
        unsafe { qemu_plugin_insn_vaddr(self.raw) }
    }

    /// Returns where QEMU itself sees it, a measure of its physical address; 0 outside RAM.
    pub fn host_address(&self) -> u64 {
        // SAFETY: as above.
        let address = unsafe { qemu_plugin_insn_haddr(self.raw) };
        u64::try_from(address.addr()).expect("64 bits")
    }

    /// Returns its 32 bits.
    pub fn bits(&self) -> u32 {
        let mut bytes = [0u8; 4];
        // SAFETY: as above; four bytes is what the array holds.
        unsafe { qemu_plugin_insn_data(self.raw, bytes.as_mut_ptr().cast(), bytes.len()) };
        u32::from_le_bytes(bytes)
    }

    /// Asks for [`Plugin::executed`] each time.
    pub fn watch_execution(&self, mark: Mark) {
        let data = mark.to_pointer();
        // SAFETY: as above; the callback takes its data for a number.
        unsafe { qemu_plugin_register_vcpu_insn_exec_cb(self.raw, on_execution, CB_R_REGS, data) };
    }

    /// Asks for [`Plugin::stored`] for each of its stores.
    pub fn watch_stores(&self) {
        let pc = usize::try_from(self.address()).expect("64-bit host");
        let data = std::ptr::without_provenance_mut(pc);
        // SAFETY: as above; the callback takes its data for a number.
        unsafe { qemu_plugin_register_vcpu_mem_cb(self.raw, on_store, CB_NO_REGS, MEM_W, data) };
    }
}

/// The registers of the CPU that is being made.
#[derive(Debug)]
pub struct Registers(Vec<(String, Register)>);

/// A register of one CPU.
#[derive(Clone, Copy, Debug)]
pub struct Register(NonNull<c_void>);

// SAFETY: a handle is a number to QEMU, which says that it is good for the CPU's own thread; that
// is where the callbacks use it.
unsafe impl Send for Register {}
// SAFETY: as above.
unsafe impl Sync for Register {}

impl Registers {
    fn current() -> Option<Self> {
        // SAFETY: called from the callback that it is meant for.
        let array = unsafe { qemu_plugin_get_registers() };
        let array = NonNull::new(array)?;
        // SAFETY: QEMU returns an array of descriptors, ours to free.
        let RawArray { data, len } = *unsafe { array.as_ref() };
        let len = usize::try_from(len).ok()?;
        // SAFETY: `len` elements of this type lie at `data`.
        let raw = unsafe { std::slice::from_raw_parts(data.cast::<RawDescriptor>(), len) };
        let registers = raw.iter().filter_map(|descriptor| {
            // SAFETY: names are C strings that live as long as QEMU.
            let name = unsafe { std::ffi::CStr::from_ptr(descriptor.name) };
            Some((name.to_str().ok()?.to_owned(), Register(NonNull::new(descriptor.handle)?)))
        });
        let registers = registers.collect();
        // SAFETY: ours, and not used again.
        unsafe { g_array_unref(array.as_ptr()) };
        Some(Self(registers))
    }

    /// Returns the register called `name`.
    pub fn named(&self, name: &str) -> Option<Register> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, register)| *register)
    }
}

impl Register {
    /// Returns its value; only in [`Plugin::executed`], for that CPU.
    pub fn read(self) -> u64 {
        BUFFER.with(|buffer| {
            // SAFETY: the buffer is this thread's, and QEMU appends to it.
            unsafe { g_byte_array_set_size(buffer.0, 0) };
            // SAFETY: a handle of QEMU's, in a callback that may read registers.
            unsafe { qemu_plugin_read_register(self.0.as_ptr(), buffer.0) };
            // SAFETY: a valid array.
            let RawArray { data, len } = *unsafe { &*buffer.0 };
            let len = usize::try_from(len).expect("few bytes").min(8);
            let mut bytes = [0; 8];
            if len > 0 {
                // SAFETY: `len` bytes lie at `data`.
                bytes[..len].copy_from_slice(unsafe { std::slice::from_raw_parts(data, len) });
            }
            u64::from_le_bytes(bytes)
        })
    }
}

/// A byte array of GLib, one per thread.
struct Buffer(*mut RawArray);

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: made by this thread, and not used again.
        unsafe { g_byte_array_unref(self.0) };
    }
}

thread_local! {
    // SAFETY: has no precondition.
    static BUFFER: Buffer = Buffer(unsafe { g_byte_array_new() });
}
