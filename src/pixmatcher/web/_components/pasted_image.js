// Sends an image that the visitor pastes anywhere on the page.
export default function ({ data, parentElement, setTriggerValue }) {
  const onPaste = (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((candidate) => candidate.type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    if (file.size > data.maxBytes) { setTriggerValue("image", { tooLarge: true }); return; }
    const reader = new FileReader();
    reader.onload = () => setTriggerValue("image", { data: reader.result.split(",")[1] });
    reader.readAsDataURL(file);
  };
  // Streamlit calls this function again with new data, without calling the returned function first.
  parentElement.stopListening?.();
  parentElement.stopListening = () => document.removeEventListener("paste", onPaste);
  document.addEventListener("paste", onPaste);
  return () => parentElement.stopListening();
}
