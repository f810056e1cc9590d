// Takes an image that is pasted anywhere on the page.
export default function ({ data, parentElement, setTriggerValue }) {
  const take = (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    if (file.size > data.limit) { setTriggerValue("image", { large: true }); return; }
    const reader = new FileReader();
    reader.onload = () => setTriggerValue("image", { data: reader.result.split(",")[1] });
    reader.readAsDataURL(file);
  };
  // Called again with other data, it is not told to end first.
  parentElement.stopListening?.();
  parentElement.stopListening = () => document.removeEventListener("paste", take);
  document.addEventListener("paste", take);
  return () => parentElement.stopListening();
}
