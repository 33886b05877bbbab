//! Prints what the encodings of the original record lose, beside the project's formats, and the errors of arithmetic on
//! codes: `cargo run --release -p qins-codec --example origins`.

#[path = "../tests/draws/mod.rs"]
mod draws;

use qins_codec::{
    Deviation, EncodeError, Format, Slice, Weights, encode,
    origins::{
        self,
        lookup::{Operation, Tables},
    },
};

const ROWS: usize = 256;
const COLS: usize = 3072;

fn main() -> Result<(), EncodeError> {
    for (name, weights) in [("Gaussian", draws::gaussian(ROWS * COLS)), ("Student-t(5)", draws::student(ROWS * COLS))] {
        let weights = Slice::new(&weights, ROWS, COLS);
        println!("{name}, {ROWS} x {COLS}, times 0.02\n");
        println!("| encoding | bits a weight | SQNR dB | mean relative error | max relative error |");
        println!("|---|---|---|---|---|");
        for origin in origins::ALL {
            let decoded = origin.round_trip(&weights)?;
            print_row(origin.name(), origin.bits_per_weight(), &Slice::new(&decoded, ROWS, COLS), &weights);
        }
        for format in [Format::Log8, Format::Q8] {
            let encoded = encode(format, &weights)?;
            print_row(format.name(), encoded.header().bits_per_weight(), &encoded.matrix(), &weights);
        }
        println!();
    }
    println!(
        "The relative errors, but for `log`, are those of the smallest weights, which 0 or the smallest code stands for.\n"
    );
    print_fpins();
    print_lookup();
    Ok(())
}

fn print_row(name: &str, bits: f64, decoded: &impl Weights, weights: &impl Weights) {
    let Deviation { sqnr_db, mean_relative_error, max_relative_error, .. } = Deviation::of(decoded, weights);
    let db = sqnr_db.map_or("exact".to_owned(), |db| format!("{db:.2}"));
    println!("| {name} | {bits:.2} | {db} | {} | {} |", percent(mean_relative_error), percent(max_relative_error));
}

/// Magnitudes that every depth has in its range, spread evenly from a tenth of the largest to the largest.
fn print_fpins() {
    let magnitudes: Vec<f32> = (0..100_000).map(|i| 0.1 + 0.9 * i as f32 / 99_999.0).collect();
    let weights = Slice::new(&magnitudes, 1, magnitudes.len());
    println!("Magnitudes from max / 10 to max, evenly spread\n");
    println!("| encoding | mean relative error | max relative error |\n|---|---|---|");
    for origin in origins::ALL.iter().filter(|origin| origin.name().starts_with("fpins")) {
        let decoded = origin.round_trip(&weights).expect("finite");
        let deviation = Deviation::of(&Slice::new(&decoded, 1, decoded.len()), &weights);
        let (mean, max) = (percent(deviation.mean_relative_error), percent(deviation.max_relative_error));
        println!("| {origin} | {mean} | {max} |");
    }
    println!();
}

fn print_lookup() {
    println!("Arithmetic on codes, all codes and pairs of codes\n");
    println!("| operation | scale | mean code error | max | mean relative error of value | max |");
    println!("|---|---|---|---|---|---|");
    for operation in Operation::ALL {
        for scale in [1.0, 16.0, 256.0] {
            let loss = Tables::new(scale).loss(operation);
            let (mean, max) = (percent(loss.mean_value), percent(loss.max_value));
            println!("| {operation:?} | {scale} | {:.2} | {:.1} | {mean} | {max} |", loss.mean_code, loss.max_code);
        }
    }
}

fn percent(ratio: f64) -> String {
    let percent = 100.0 * ratio;
    if percent < 1000.0 { format!("{percent:.2} %") } else { format!("{percent:.1e} %") }
}
