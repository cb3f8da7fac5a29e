//! A conversation with a language model through wasi-nn, in Rust without any crate: as guests/nn_chat, which is in C.
//!
//!     chat [--single] SYSTEM       answers each line of standard input as a turn of one conversation, written as ChatML
use std::io::{self, BufRead, Write};

const END_OF_SEQUENCE: u32 = 100;
const CONTEXT_FULL: u32 = 101;
const U8: u8 = 3;

#[repr(C)]
struct Tensor {
    dims: *const u32,
    rank: u32,
    kind: u8,
    data: *const u8,
    len: u32,
}

#[link(wasm_import_module = "wasi_ephemeral_nn")]
extern "C" {
    fn load_by_name(name: *const u8, len: u32, graph: *mut u32) -> u32;
    fn init_execution_context(graph: u32, context: *mut u32) -> u32;
    fn set_input(context: u32, index: u32, tensor: *const Tensor) -> u32;
    fn compute(context: u32) -> u32;
    fn compute_single(context: u32) -> u32;
    fn get_output(context: u32, index: u32, out: *mut u8, cap: u32, len: *mut u32) -> u32;
    fn get_output_single(context: u32, index: u32, out: *mut u8, cap: u32, len: *mut u32) -> u32;
    fn fini_single(context: u32) -> u32;
}

fn check(errno: u32, what: &str) {
    if errno != 0 && errno != CONTEXT_FULL {
        eprintln!("{}: error {} of wasi-nn", what, errno);
        std::process::exit(1);
    }
}

type Output = unsafe extern "C" fn(u32, u32, *mut u8, u32, *mut u32) -> u32;

fn output(get: Output, context: u32) -> Vec<u8> {
    let (mut data, mut len) = (vec![0; 1 << 16], 0);
    check(unsafe { get(context, 0, data.as_mut_ptr(), data.len() as u32, &mut len) }, "get_output");
    data.truncate(len as usize);
    data
}

/// Makes the whole answer, and shows it as it comes.
fn answer(context: u32, single: bool) -> Vec<u8> {
    let mut show = io::stdout();
    if !single {
        check(unsafe { compute(context) }, "compute");
        let text = output(get_output, context);
        show.write_all(&text).unwrap();
        return text;
    }
    let mut text = Vec::new();
    loop {
        let errno = unsafe { compute_single(context) };
        if errno == END_OF_SEQUENCE || errno == CONTEXT_FULL {
            break;
        }
        check(errno, "compute_single");
        let piece = output(get_output_single, context);
        show.write_all(&piece).unwrap();
        text.extend(piece);
    }
    check(unsafe { fini_single(context) }, "fini_single");
    text
}

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let single = arguments.first().map_or(false, |first| first == "--single");
    let system = arguments.pop().unwrap_or_default();
    let (mut graph, mut context) = (0, 0);
    let name = "default";
    check(unsafe { load_by_name(name.as_ptr(), name.len() as u32, &mut graph) }, "load_by_name");
    check(unsafe { init_execution_context(graph, &mut context) }, "init_execution_context");
    let mut text = format!("<|im_start|>system\n{}<|im_end|>\n", system).into_bytes();
    for question in io::stdin().lock().lines() {
        text.extend(format!("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", question.unwrap()).bytes());
        let dims = [text.len() as u32];
        let prompt = Tensor { dims: dims.as_ptr(), rank: 1, kind: U8, data: text.as_ptr(), len: dims[0] };
        check(unsafe { set_input(context, 0, &prompt) }, "set_input");
        let said = answer(context, single);
        println!();
        text.extend(said);
        text.extend(b"<|im_end|>\n");
    }
}
